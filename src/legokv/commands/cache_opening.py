"""Opens what `legokv cache` works on: a cache folder without its engine, and its fleet's Redis."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from legokv.built.folder import EngineFacts
from legokv.documents.exchange import Cache
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import NotFound
from legokv.serving.settings import Settings
from legokv.stores.local.registry import Registry
from legokv.stores.local.tier import DiskTier
from legokv.stores.opening import open_shared_registry, remote_tier_of
from legokv.stores.tiers import open_disk_tier
from legokv.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from legokv.stores.fleet.tier import RemoteTier


@dataclass(frozen=True)
class OpenCache:
    """One model's documents and where their chunks lie: this machine's disk, a fleet's Redis."""

    documents: Cache
    disk: DiskTier
    remote: "RemoteTier | None"

    @property
    def registry(self) -> DocumentRegistry:
        return self.documents.registry


def check_is_cache(settings: Settings, facts: EngineFacts) -> None:
    """NotFound if no server of this model keeps anything in the folder; makes nothing.

    A fleet that keeps all in Redis needs none.
    """
    if settings.shared_cache(facts) is not None and not settings.disk_bytes:
        return
    file = settings.registry_path(facts)
    if not file.is_file():
        raise NotFound(
            f"{settings.cache_dir} is no cache of the engine {settings.engine}: {file} does not "
            "exist; give --cache-dir the folder that `legokv serve` has for this engine, or, for a "
            "fleet's Redis alone, set LEGOKV_DISK_BYTES=0"
        )


def open_cache(settings: Settings, facts: EngineFacts) -> OpenCache:
    """This machine's stored chunks, and the documents it has or those of its fleet."""
    file = settings.registry_path(facts)
    shared = settings.shared_cache(facts)
    registry: DocumentRegistry
    if shared is None:
        registry, remote = Registry.open(file), None
    else:
        registry = open_shared_registry(shared)
        remote = remote_tier_of(registry, settings) if settings.remote_bytes else None
    disk = open_disk_tier(file.parent, registry, settings)
    tiers = (disk,) if remote is None else (disk, remote)
    limits = settings.document_limits_of(facts)
    codec = Tokenizer.open(settings.engine)
    documents = Cache(facts.fingerprint, facts.model, registry, tiers, codec, limits)
    return OpenCache(documents, disk, remote)
