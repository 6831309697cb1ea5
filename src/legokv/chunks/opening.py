"""Opens the tiers of one model: host memory, and the folder and registry file under its root."""

import logging
from collections.abc import Callable, Collection
from pathlib import Path

from legokv.chunks.disk_tier import DiskTier
from legokv.chunks.evictions import DiskLimits
from legokv.chunks.folder import ChunkFolder
from legokv.chunks.host_tier import HostTier
from legokv.chunks.limits import TierLimits
from legokv.chunks.lower_tiers import LowerTiers
from legokv.chunks.repair import mend
from legokv.chunks.stored_chunks import StoredChunks
from legokv.chunks.tier import ChunkTier
from legokv.documents.registry import Registry
from legokv.errors import Busy, CacheUnavailable

PinnedKeys = Callable[[], Collection[str]]

log = logging.getLogger(__name__)


def registry_file(root: Path) -> Path:
    """The document registry of a model whose cache is under `root`."""
    return root / "registry.sqlite"


def open_tiers(
    root: Path | None, limits: TierLimits, pinned_keys: PinnedKeys, *, pin_memory: bool = False
) -> LowerTiers:
    """The tiers, mended. Without a root, or with one that cannot be used, there is none on disk."""
    tiers: list[ChunkTier] = []
    if limits.host_bytes:
        budget = limits.budget(limits.host_bytes)
        tiers.append(HostTier(budget, pinned_keys, pin_memory=pin_memory))
    if root is not None and limits.disk_bytes:
        try:
            tiers.append(_mended(root, limits, pinned_keys))
        except (Busy, CacheUnavailable) as error:
            log.error("no chunk is kept on disk: %s", error)
    return LowerTiers(tiers)


def open_disk_tier(
    root: Path, registry: Registry, limits: TierLimits, pinned_keys: PinnedKeys = frozenset
) -> DiskTier:
    """The disk tier under `root`, as it is; chunks of the registry's pinned documents stay."""
    quota = limits.budget(limits.namespace_bytes) if limits.namespace_bytes else None
    disk_limits = DiskLimits(limits.budget(limits.disk_bytes), quota)

    def stay() -> frozenset[str]:
        return registry.pinned_chunk_keys().union(pinned_keys())

    stored = StoredChunks(registry.database, disk_limits, stay)
    return DiskTier(ChunkFolder(root / "chunks"), stored)


def _mended(root: Path, limits: TierLimits, pinned_keys: PinnedKeys) -> DiskTier:
    registry = Registry.open(registry_file(root))
    tier = open_disk_tier(root, registry, limits, pinned_keys)
    repair = mend(tier, registry.named)
    if repair.num_found:
        log.warning("the chunk folder was mended: %s", repair)
    return tier
