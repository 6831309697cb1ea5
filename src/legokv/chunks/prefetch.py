"""Brings a waiting request's chunks from slow tiers to a fast one, in a thread beside the steps."""

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

from legokv.chunks.chunk import Chunk
from legokv.chunks.stored_kv import StoredKv
from legokv.chunks.tiers import LowerTiers

log = logging.getLogger(__name__)


class Prefetch:
    """Chunks of one request on their way, leased in all tiers until `close` or a deadline.

    `held` is what was read of them, by key, where it is to be held for the one who asks.
    """

    def __init__(
        self,
        tiers: LowerTiers,
        chunks: Sequence[Chunk],
        thread: ThreadPoolExecutor,
        *,
        hold: bool = False,
    ) -> None:
        self.held: dict[str, StoredKv] = {}
        self._hold = hold
        self._tiers = tiers
        self._thread = thread
        self._lease = ExitStack()
        self._closed = False
        self._fetched: Future[None] = thread.submit(_logged, self._fetch, tuple(chunks))

    @property
    def done(self) -> bool:
        return self._fetched.done()

    def wait(self, seconds: float | None = None) -> bool:
        """Return when all is fetched that could be, or after `seconds`: whether it is. The rest,
        the reader will find missing.
        """
        return bool(wait([self._fetched], seconds).done)

    def close(self) -> None:
        """End the lease; what is not fetched yet is not fetched any more."""
        self._closed = True
        self._thread.submit(_logged, self._lease.close)

    def _fetch(self, chunks: tuple[Chunk, ...]) -> None:
        if self._closed:
            return
        self._lease.enter_context(self._tiers.leased([chunk.key for chunk in chunks]))
        for chunk in chunks:
            if self._closed:
                return
            if not self._hold:
                self._tiers.fetch(chunk)
            elif (kv := self._tiers.read(chunk)) is not None:
                self.held[chunk.key] = kv


def _logged(work: Callable[..., None], *arguments: object) -> None:
    """Do what nobody asks the outcome of: the reader finds missing what was not fetched."""
    try:
        work(*arguments)
    except Exception:
        log.exception("chunks were not fetched ahead")


class Prefetcher:
    """Fetches for one request after another, in the order they were queued."""

    def __init__(self, tiers: LowerTiers) -> None:
        self._tiers = tiers
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")

    def begin(self, chunks: Sequence[Chunk]) -> Prefetch | None:
        """The prefetch of those chunks that a slow tier has; None if there are none."""
        missing = [chunk for chunk in chunks if self._tiers.fetchable(chunk)]
        return Prefetch(self._tiers, missing, self._thread) if missing else None

    def read(self, chunks: Sequence[Chunk]) -> Prefetch:
        """Have these chunks read, and held, whichever tier has them."""
        return Prefetch(self._tiers, chunks, self._thread, hold=True)
