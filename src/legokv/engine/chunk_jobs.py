"""Jobs that bring one chunk into the pool: compiled for others, asked for, or to be kept."""

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import Resident
from legokv.engine.draw import Drawn
from legokv.engine.jobs import Job
from legokv.engine.request import Finished, Usage
from legokv.engine.transfer import Transfer
from legokv.step.sequence import TokenSequence


class FillJob(Job):
    """Compute one resident's KV; `filled` is told it and the seconds taken when it is there.

    It waits for what stands before the chunk.
    """

    waits_in_line = False

    def __init__(
        self, resident: Resident, sequence: TokenSequence, filled: Callable[[Resident, float], None]
    ) -> None:
        super().__init__((resident.chunk,), 0)
        self.filling = resident
        self.sequences = (sequence,)
        self._filled = filled
        self._started_at = self.submitted_at

    def start(self, transfer: Transfer) -> bool:
        self._started_at = time.monotonic()
        return True

    def computed(self, sequence: TokenSequence, logits: Tensor, drawn: Sequence[Drawn]) -> bool:
        assert self.filling is not None, "a FillJob has its resident"
        self._filled(self.filling, time.monotonic() - self._started_at)
        return True


class ChunkJob(Job):
    """Get one chunk into the pool, from a tier or by compiling it; ends with a Finished."""

    def __init__(self, chunk: Chunk) -> None:
        super().__init__((chunk,), 0)

    def start(self, transfer: Transfer) -> bool:
        length = len(self.chunks[0].token_ids)
        self.events.put(Finished("stop", Usage(length, length, 0, 0, 1)))
        return False


class CompileJob(ChunkJob):
    """Get one chunk compiled and kept in every tier that is to keep it; ends with a Finished."""

    waits_in_line = False
    is_to_store = True

    def start(self, transfer: Transfer) -> bool:
        assert self.grant is not None, "a job starts after it was granted its pages"
        transfer.store(self.grant.resident_of(self.chunks[0]))
        self.kept()
        return False

    def kept(self) -> None:
        length = len(self.chunks[0].token_ids)
        self.events.put(Finished("stop", Usage(length, 0, 0, length, 1, compiled_tokens=length)))
