"""Bring a document to ready: compile its chunks, or wait for whoever does. No tensors here."""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace

from legokv.documents.document import Document, DocumentLimits, State, StoredChunk
from legokv.documents.protocol import Claim, CompiledChunk, DocumentRegistry
from legokv.errors import (
    Busy,
    CacheUnavailable,
    ClaimLost,
    EngineGone,
    InvalidRequest,
    LegokvError,
    NotFound,
    PoolFull,
)

# `compile_chunk(namespace, chunks)` compiles the last of a document's first chunks behind the
# others, keeps it, and gives its key.
CompileChunk = Callable[[str, Sequence[StoredChunk]], str]
# `drop_chunks(keys)` lets the stored KV of these chunks go.
DropChunks = Callable[[Sequence[str]], None]
# `warm_chunk(namespace, chunks, tier)` has the KV of the last of them in that tier or a faster one.
WarmChunk = Callable[[str, Sequence[StoredChunk], str], None]
# `rank_chunk(namespace, chunks)` has the last of them ranked, and that kept with its KV.
RankChunk = Callable[[str, Sequence[StoredChunk]], None]
# `find_chunks(keys)` gives the fastest tier that has each of these chunks, "" for none.
FindChunks = Callable[[Sequence[str]], Sequence[str]]

POLL_SECONDS = 0.05
RENEWALS_PER_CLAIM = 4
"""A claim outlives that many tries but one to renew it."""

_log = logging.getLogger(__name__)


def _no_tiers(namespace: str, chunks: Sequence[StoredChunk], tier: str) -> None:
    raise InvalidRequest(f"there is no engine here whose tier '{tier}' could be warmed")


def _nowhere(keys: Sequence[str]) -> Sequence[str]:
    raise InvalidRequest("there is no engine here that could say in which tiers chunks are")


def _no_ranking(namespace: str, chunks: Sequence[StoredChunk]) -> None:
    raise InvalidRequest("there is no engine here that could rank chunks")


class Compiler:
    """Compiles documents of one registry; several of them, in any processes, share the work."""

    def __init__(  # noqa: PLR0913 - what it has an engine do, call by call
        self,
        registry: DocumentRegistry,
        compile_chunk: CompileChunk,
        drop_chunks: DropChunks,
        limits: DocumentLimits,
        warm_chunk: WarmChunk = _no_tiers,
        find_chunks: FindChunks = _nowhere,
        rank_chunk: RankChunk = _no_ranking,
    ) -> None:
        self._registry = registry
        self._compile_chunk = compile_chunk
        self._drop_chunks = drop_chunks
        self._limits = limits
        self._warm_chunk = warm_chunk
        self.places = find_chunks
        self._rank_chunk = rank_chunk

    def bring_to_ready(self, namespace: str, document_id: str) -> Document:
        """The document, ready or failed; compiled here unless another does it already.

        Busy when it is still not done after `wait_seconds`; NotFound when it is deleted meanwhile.
        """
        deadline = time.monotonic() + self._limits.wait_seconds
        while True:
            document = self.compile_if_free(namespace, document_id)
            if document is None:
                document = self._registry.get(namespace, document_id)
            if document.state in (State.READY, State.FAILED):
                return document
            if time.monotonic() >= deadline:
                raise Busy(
                    f"document {document_id} has {document.compiled_chunks} of "
                    f"{document.num_chunks} chunks compiled after "
                    f"{self._limits.wait_seconds:g} s; ask for it again later"
                )
            time.sleep(POLL_SECONDS)

    def compile_if_free(self, namespace: str, document_id: str) -> Document | None:
        """Compile the document: as it is then, or None if it is done or another is at it.

        A failure is noted in the registry; one that nobody foresaw is raised too. A document
        deleted meanwhile leaves nothing.
        """
        claim = self._registry.take_claim(namespace, document_id, self._limits.claim_seconds)
        if claim is None:
            return None
        try:
            with self._renewed(claim):
                return self._compiled(claim)
        except ClaimLost:
            return None
        except EngineGone:
            # No fault of the document's: whoever asks next compiles the rest, at once.
            self._give_up(claim)
            raise
        except LegokvError as error:
            _log.warning("document %s was not compiled: %s", document_id, error)
            return self._failed(claim, str(error))
        except Exception as error:
            self._failed(claim, f"{type(error).__name__}: {error}")
            raise

    def warm(self, namespace: str, document_id: str, tier: str) -> int:
        """How many of the document's chunks, from the first, are in `tier` or a faster one now."""
        return self._for_each_chunk(
            namespace, document_id, lambda chunks: self._warm_chunk(namespace, chunks, tier), "warm"
        )

    def rank(self, namespace: str, document_id: str) -> int:
        """How many of the document's chunks, from the first, are ranked now."""
        return self._for_each_chunk(
            namespace, document_id, lambda chunks: self._rank_chunk(namespace, chunks), "ranked"
        )

    def _for_each_chunk(
        self,
        namespace: str,
        document_id: str,
        do: Callable[[Sequence[StoredChunk]], None],
        what: str,
    ) -> int:
        """For how many chunks, from the first, it was done: each is given those before it too."""
        done = 0
        try:
            chunks = self._registry.chunks(namespace, document_id)
            for number in range(len(chunks)):
                do(chunks[: number + 1])
                done += 1
        except (PoolFull, Busy, CacheUnavailable) as error:
            _log.warning("document %s has %d %s chunks: %s", document_id, done, what, error)
        return done

    def drop(self, keys: Sequence[str]) -> None:
        """Let the stored KV of these chunks go; what can't be dropped now is left to eviction."""
        if not keys:
            return
        try:
            self._drop_chunks(keys)
        except LegokvError as error:
            _log.warning("%d chunks were not dropped: %s", len(keys), error)

    def _compiled(self, claim: Claim) -> Document:
        # The others are by an earlier holder that died or failed at a later chunk.
        chunks = list(claim.chunks)
        missing = [place for place, chunk in enumerate(chunks) if chunk.key is None]
        for place in missing:
            key = self._compile_chunk(claim.namespace, chunks[: place + 1])
            chunks[place] = replace(chunks[place], key=key)
            try:
                if place == missing[-1]:
                    return self._registry.finish_claim(claim, last=CompiledChunk(place, key))
                self._registry.record_chunk(claim, place, key)
            except ClaimLost:
                self._drop_if_deleted(claim, key)
                raise
        return self._registry.finish_claim(claim)

    def _drop_if_deleted(self, claim: Claim, key: str) -> None:
        """Let a chunk go that was compiled in vain; one of a document that another took over is
        what that one is about to note.
        """
        try:
            self._registry.get(claim.namespace, claim.document_id)
        except NotFound:
            self.drop(self._registry.unnamed([key]))

    @contextmanager
    def _renewed(self, claim: Claim) -> Iterator[None]:
        """Move the claim's deadline beside the block, however long one chunk takes."""
        over = threading.Event()
        renewing = threading.Thread(target=self._renew, args=(claim, over), daemon=True)
        renewing.start()
        try:
            yield
        finally:
            over.set()

    def _renew(self, claim: Claim, over: threading.Event) -> None:
        while not over.wait(claim.seconds / RENEWALS_PER_CLAIM):
            try:
                self._registry.renew_claim(claim)
            except ClaimLost:
                return
            except (Busy, CacheUnavailable) as error:
                _log.warning("document %s's claim was not renewed: %s", claim.document_id, error)

    def _give_up(self, claim: Claim) -> None:
        """End the claim's time now: else others would wait for a holder that is gone."""
        try:
            self._registry.renew_claim(replace(claim, seconds=0.0))
        except ClaimLost:
            return
        except (Busy, CacheUnavailable) as error:
            _log.warning("document %s's claim was not given back: %s", claim.document_id, error)

    def _failed(self, claim: Claim, reason: str) -> Document | None:
        with suppress(ClaimLost):
            return self._registry.finish_claim(claim, failure=reason)
        return None
