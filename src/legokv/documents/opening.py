"""Opens the registry of one model's documents: this machine's own, or the fleet's."""

from pathlib import Path

from legokv.documents.protocol import DocumentRegistry
from legokv.stores.fleet.address import SharedCache
from legokv.stores.local.registry import Registry
from legokv.stores.opening import open_shared_registry


def open_registry(file: Path, shared: SharedCache | None) -> DocumentRegistry:
    """The registry in `file`, or the shared one if there is one."""
    return Registry.open(file) if shared is None else open_shared_registry(shared)
