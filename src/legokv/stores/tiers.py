"""Opens the tiers of one model: host memory, the folder under its root, the fleet's Redis."""

import logging
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from legokv.built.folder import registry_file
from legokv.built.settings import EngineSettings
from legokv.chunks.host_tier import HostTier
from legokv.chunks.stored_kv import KvForm
from legokv.chunks.tier import ChunkTier
from legokv.chunks.tiers import LowerTiers
from legokv.documents.protocol import DocumentRegistry
from legokv.errors import Busy, CacheUnavailable
from legokv.stores.fleet.address import SharedCache
from legokv.stores.local.chunk_rows import StoredChunks
from legokv.stores.local.evictions import DiskLimits
from legokv.stores.local.files import ChunkFolder
from legokv.stores.local.models import ModelContents, models_in, remove_model
from legokv.stores.local.neighbours import Neighbours
from legokv.stores.local.registry import Registry
from legokv.stores.local.repair import NamedKeys, mend
from legokv.stores.local.tier import DiskTier
from legokv.stores.opening import advise_on, open_remote_tier, open_shared_registry

CHUNKS = "chunks"
"""The folder of chunk files below a model's root."""
PinnedKeys = Callable[[], Collection[str]]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TierUse:
    """What of an engine decides how its tiers work.

    form: that of its KV; other KV is not used. pin_memory: keep KV where a GPU copies from.
    write_behind: as LowerTiers has it.
    """

    form: KvForm | None = None
    pin_memory: bool = False
    write_behind: bool = False


PLAIN_USE = TierUse()


def open_tiers(
    root: Path | None,
    settings: EngineSettings,
    pinned_keys: PinnedKeys,
    *,
    use: TierUse = PLAIN_USE,
    shared: SharedCache | None = None,
) -> LowerTiers:
    """The tiers, mended. Without a root, or with one that cannot be used, there is none on disk.

    With a shared cache there is a remote one, and the documents in it are those that count.
    """
    fleet = None if shared is None else open_shared_registry(shared)
    if fleet is not None:
        advise_on(fleet, settings)
    tiers: list[ChunkTier] = []
    if settings.host_bytes:
        budget = settings.budget(settings.host_bytes)
        tiers.append(HostTier(budget, pinned_keys, pin_memory=use.pin_memory))
    if root is not None and settings.disk_bytes:
        try:
            tiers.append(_mended(root, settings, pinned_keys, fleet))
        except (Busy, CacheUnavailable) as error:
            log.error("no chunk is kept on disk: %s", error)
    if fleet is not None and settings.remote_bytes:
        tiers.append(open_remote_tier(fleet, settings))
    return LowerTiers(tiers, settings.kv_stored_dtype, use.form, write_behind=use.write_behind)


def open_disk_tier(
    root: Path,
    registry: DocumentRegistry,
    settings: EngineSettings,
    pinned_keys: PinnedKeys = frozenset,
) -> DiskTier:
    """The disk tier under `root`, as it is; chunks of the registry's pinned documents stay.

    The budget is that of all models with a root beside this one. The tier's rows are in the root's
    own registry file, whichever registry has the documents.
    """
    limits = DiskLimits(settings.budget(settings.disk_bytes), settings.namespace_budget)

    def stay() -> frozenset[str]:
        return registry.pinned_chunk_keys().union(pinned_keys())

    own = registry if isinstance(registry, Registry) else Registry.open(registry_file(root))
    stored = StoredChunks(own.database, limits, stay)
    neighbours = Neighbours(registry_file(root), CHUNKS)
    return DiskTier(ChunkFolder(root / CHUNKS), stored, neighbours.bytes_beside)


def disk_models(cache_dir: Path) -> dict[str, ModelContents]:
    """What each model keeps below `cache_dir`, by the beginning of its fingerprint."""
    return models_in(cache_dir, registry_file(Path()).name, CHUNKS)


def remove_disk_model(cache_dir: Path, model: str) -> None:
    """Remove all that one of the `disk_models` keeps; Busy while a server has it open."""
    remove_model(cache_dir, model, registry_file(Path()).name)


def _mended(
    root: Path, settings: EngineSettings, pinned_keys: PinnedKeys, fleet: DocumentRegistry | None
) -> DiskTier:
    registry = fleet or Registry.open(registry_file(root))
    tier = open_disk_tier(root, registry, settings, pinned_keys)
    repair = mend(tier, _asked_if_there(registry))
    if repair.num_found:
        log.warning("the chunk folder was mended: %s", repair)
    return tier


def _asked_if_there(registry: DocumentRegistry) -> NamedKeys:
    """Which chunks documents name; none while that cannot be asked: a file can be made again."""

    def named(keys: Collection[str]) -> Mapping[str, str]:
        if not keys:
            return {}
        try:
            return registry.named(keys)
        except CacheUnavailable as error:
            log.warning("%d files without a row are given up: %s", len(keys), error)
            return {}

    return named
