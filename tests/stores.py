"""The places that durable tiers keep chunks in, each opened as by several processes at once."""

import uuid
from collections.abc import Callable, Collection
from pathlib import Path

from small_chunks import small_chunk, small_kv

from legokv.built.folder import registry_file
from legokv.built.settings import EngineSettings
from legokv.chunks.budget import Budget
from legokv.chunks.stored_form import encode_chunk
from legokv.documents.document import NewDocument
from legokv.documents.protocol import DocumentRegistry
from legokv.stores.fleet.connection import Connection
from legokv.stores.fleet.registry import RedisRegistry
from legokv.stores.fleet.tier import RemoteLimits, RemoteTier
from legokv.stores.local.registry import Registry
from legokv.stores.local.tier import DiskTier
from legokv.stores.tiers import open_disk_tier

# Of one small chunk in its stored form.
STORED_BYTES = encode_chunk(small_chunk(0).key, small_chunk(0).token_ids, small_kv(0)).num_bytes


class DiskStore:
    """A folder and its registry file."""

    def __init__(self, root: Path, clock: Callable[[], float]) -> None:
        self._root, self._clock = root, clock
        self.registry: DocumentRegistry = self._open()

    def _open(self) -> Registry:
        return Registry.open(registry_file(self._root), self._clock)

    def tier(self, max_bytes: int = 2**30, quota: int = 0, low: float = 1.0) -> DiskTier:
        settings = EngineSettings(
            disk_bytes=max_bytes, namespace_bytes=quota, low_watermark_percent=round(100 * low)
        )
        return open_disk_tier(self._root, self._open(), settings)

    def stored(self, tier: DiskTier) -> dict[str, int]:
        return {file.key: file.num_bytes for file in tier.folder.files()}

    def noted(self, tier: DiskTier) -> dict[str, int]:
        return {row.key: row.num_bytes for row in tier.stored.rows()}

    def damage(self, tier: DiskTier, key: str, content: bytes) -> None:
        tier.folder.path(key).write_bytes(content)

    def content(self, tier: DiskTier, key: str) -> bytes:
        return tier.folder.path(key).read_bytes()

    def lose(self, tier: DiskTier, key: str) -> None:
        tier.folder.path(key).unlink()


class RemoteStore:
    """One model's keys in a running Redis."""

    def __init__(self, url: str, clock: Callable[[], float]) -> None:
        self._url, self._clock, self._model = url, clock, uuid.uuid4().hex
        self.registry: DocumentRegistry = RedisRegistry(self._open())
        self._own = self._open()

    def _open(self) -> Connection:
        return Connection(self._url, self._model, clock=self._clock)

    def tier(self, max_bytes: int = 2**30, quota: int = 0, low: float = 1.0) -> RemoteTier:
        limits = RemoteLimits(Budget(max_bytes, low=low), Budget(quota, low=low) if quota else None)
        return RemoteTier(self._open(), limits)

    def stored(self, tier: RemoteTier) -> dict[str, int]:
        with self._own.asking() as client:
            names = [name.decode() for name in client.scan_iter(f"{self._own.prefix}kv/*")]
            return {name.rsplit("/")[-1]: client.strlen(name) for name in names}

    def noted(self, tier: RemoteTier) -> dict[str, int]:
        with self._own.asking() as client:
            found = client.hgetall(f"{self._own.prefix}sizes")
        return {key.decode(): int(size) for key, size in found.items()}

    def damage(self, tier: RemoteTier, key: str, content: bytes) -> None:
        with self._own.asking() as client:
            client.set(f"{self._own.prefix}kv/{key}", content)

    def content(self, tier: RemoteTier, key: str) -> bytes:
        with self._own.asking() as client:
            return client.get(f"{self._own.prefix}kv/{key}")

    def lose(self, tier: RemoteTier, key: str) -> None:
        with self._own.asking() as client:
            client.delete(f"{self._own.prefix}kv/{key}")


def pin(registry: DocumentRegistry, keys: Collection[str]) -> Callable[[], object]:
    """Pin a document of compiled chunks with these keys; what is given unpins it."""
    new = NewDocument("default", f"Of {sorted(keys)}", tuple((n,) for n, _ in enumerate(keys)))
    document, _ = registry.register(new, {"pinned": True}, 100)
    claim = registry.take_claim("default", document.id, 60.0)
    assert claim is not None
    for position, key in enumerate(keys):
        registry.record_chunk(claim, position, key)
    return lambda: registry.update("default", document.id, {"pinned": False}, 0)
