"""The remote tier: chunks' stored bytes in a Redis that several machines share."""

import io
import threading
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

from legokv.chunks.budget import Budget
from legokv.chunks.chunk import Chunk
from legokv.chunks.stats import TierCounts, TierStats
from legokv.chunks.stored_form import EncodedChunk, decode_chunk, encode_chunk
from legokv.chunks.stored_kv import StoredKv
from legokv.chunks.tier import MAX_LEASE_SECONDS, StoredRow
from legokv.errors import CacheUnavailable, ChunkUnreadable
from legokv.stores.fleet.connection import Connection, Script

# Sent a piece at a time, so that the time for one reply bounds a piece and not the whole.
_PIECE_BYTES = 4 * 2**20
_ARRIVING_SECONDS = 60
# Redis' own limit for one value, unless its proto-max-bulk-len is raised.
_MAX_VALUE_BYTES = 512 * 2**20


@dataclass(frozen=True)
class RemoteLimits:
    """The budget of all chunks of a model together, and each namespace's quota, None for none."""

    budget: Budget
    quota: Budget | None = None


class RemoteTier:
    """A ChunkTier in Redis. What is not whole is unreadable, never wrong.

    Chunks of the documents pinned in the registry beside it stay, as leased ones do. Redis may
    lose any of it at any time, or be away.
    """

    name = "remote"
    durable = True

    def __init__(self, connection: Connection, limits: RemoteLimits) -> None:
        self.limits = limits
        self._connection = connection
        self._script = Script("chunks")
        self._counts = TierCounts(self.name)
        self._used: dict[str, None] = {}
        self._used_lock = threading.Lock()

    def has(self, key: str) -> bool:
        with self._connection.asking() as client:
            return bool(client.exists(self._place(key)))

    def read(self, chunk: Chunk) -> StoredKv:
        content = self.content(chunk.key)
        if content is None:
            self._counts.add("misses")
            raise ChunkUnreadable(f"chunk {chunk.key[:12]} is not in Redis", "missing")
        try:
            kv = decode_chunk(content, chunk.key, chunk.token_ids)
        except ChunkUnreadable as error:
            self._counts.add_failed_read(error.reason)
            what = f"chunk {chunk.key[:12]} in Redis: {error}"
            raise ChunkUnreadable(what, error.reason) from error
        self._counts.add("hits")
        self.touch([chunk.key])
        return kv

    def content(self, key: str) -> bytearray | None:
        """The stored bytes as they are, unchecked; None if there are none."""
        with self._connection.asking() as client:
            content = client.get(self._place(key))
        return bytearray(content) if isinstance(content, bytes) else None

    def open_content(self, key: str) -> BinaryIO | None:
        """The same to be read as a file."""
        content = self.content(key)
        return None if content is None else io.BytesIO(content)

    def keys(self) -> set[str]:
        """Keys of all bytes that are kept, whether the index names them or not."""
        with self._connection.asking() as client:
            names = client.scan_iter(match=self._place("*"))
            return {name.decode().removeprefix(self._place("")) for name in names}

    def rows(self) -> tuple[StoredRow, ...]:
        """What the index names, in no order."""
        prefix = self._connection.prefix
        with self._connection.asking() as client, client.pipeline() as pipe:
            pipe.hgetall(f"{prefix}sizes")
            pipe.hgetall(f"{prefix}owners")
            sizes, owners = pipe.execute()
        return tuple(
            StoredRow(key.decode(), owners[key].decode(), int(size)) for key, size in sizes.items()
        )

    def write(self, chunk: Chunk, kv: StoredKv) -> bool:
        """Keep the KV, whole or not at all; False if quota or budget is full of what must stay."""
        encoded = encode_chunk(chunk.key, chunk.token_ids, kv)
        return self.write_encoded(chunk.key, chunk.namespace, encoded)

    def write_encoded(self, key: str, namespace: str, encoded: EncodedChunk) -> bool:
        """`write` for a chunk that is in its stored form already."""
        if encoded.num_bytes > min(self.limits.budget.limit, _MAX_VALUE_BYTES):
            self._counts.add("refused")
            return False
        try:
            outcome, *numbers = self._send(key, namespace, encoded)
        except CacheUnavailable:
            self._counts.add("failed_writes")
            raise
        if outcome == b"short":
            self._counts.add("failed_writes")
            raise CacheUnavailable(
                f"chunk {key[:12]} was not stored: {numbers[0]} of {encoded.num_bytes} bytes "
                f"arrived at {self._connection.shown_url}"
            )
        if outcome == b"refused":
            self._counts.add("refused")
            return False
        self._counts.add_evictions("quota", int(numbers[0]))
        self._counts.add_evictions("budget", int(numbers[1]))
        self._counts.add("writes")
        return True

    def remove(self, key: str) -> None:
        self._count_dropped(self._run("drop", {"keys": [key]}))

    def discard(self, key: str) -> None:
        self._run("forget", {"keys": [key]})
        self._counts.add_evictions("damaged")

    def trim(self) -> None:
        """Forget what Redis lost, and evict what nobody names or the budget has no room for."""
        _, lost, surplus, dropped = self._run("trim", asdict(self.limits))
        self._counts.add_evictions("damaged", int(lost))
        self._counts.add_evictions("budget", int(surplus))
        self._counts.add_evictions("dropped", int(dropped))

    def touch(self, keys: Collection[str]) -> None:
        """Note a use; sent with the next write or lease."""
        with self._used_lock:
            for key in keys:
                self._used.pop(key, None)
                self._used[key] = None

    def lease(self, holder: str, keys: Collection[str], seconds: float) -> None:
        lasting = min(seconds, MAX_LEASE_SECONDS)
        asked = {"holder": holder, "keys": list(keys), "seconds": lasting, "used": self._uses()}
        self._run("lease", asked)

    def release(self, holder: str) -> None:
        self._count_dropped(self._run("release", {"holder": holder}))

    def stats(self) -> TierStats:
        try:
            _, num_chunks, num_bytes, num_leases = self._run("totals", {})
        except CacheUnavailable:
            num_chunks = num_bytes = num_leases = 0
        return self._counts.stats(
            num_chunks=int(num_chunks),
            num_bytes=int(num_bytes),
            max_bytes=self.limits.budget.limit,
            num_leases=int(num_leases),
        )

    def _place(self, key: str) -> str:
        return f"{self._connection.prefix}kv/{key}"

    def _send(self, key: str, namespace: str, encoded: EncodedChunk) -> list[Any]:
        """The bytes under a name of their own that expires, then into the index in one step."""
        arriving = uuid.uuid4().hex
        place = f"{self._connection.prefix}arriving/{arriving}"
        arguments = {
            **asdict(self.limits),
            "max_lease_seconds": MAX_LEASE_SECONDS,
            "key": key,
            "namespace": namespace,
            "num_bytes": encoded.num_bytes,
            "arriving": arriving,
            "used": self._uses(),
        }
        with self._connection.asking() as client, client.pipeline(transaction=False) as pipe:
            pipe.set(place, encoded.header, ex=_ARRIVING_SECONDS)
            for piece in _pieces(encoded.data):
                pipe.append(place, piece)
            sent = self._connection.script_arguments("keep", arguments)
            pipe.eval(self._script.text, 1, self._connection.prefix, *sent)
            reply: list[Any] = pipe.execute()[-1]
            return reply

    def _run(self, operation: str, arguments: Mapping[str, object]) -> list[Any]:
        values = {"max_lease_seconds": MAX_LEASE_SECONDS, **arguments}
        return self._connection.run(self._script, operation, values)

    def _uses(self) -> list[str]:
        with self._used_lock:
            used, self._used = self._used, {}
        return list(used)

    def _count_dropped(self, reply: list[Any]) -> None:
        self._counts.add_evictions("dropped", int(reply[1]))


def _pieces(data: memoryview) -> Iterable[memoryview]:
    return (data[at : at + _PIECE_BYTES] for at in range(0, data.nbytes, _PIECE_BYTES))
