"""A chunk's ranking: how far each of its tokens' keys moves when foreign text stands before it."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.chunks.pool import Resident
from legokv.engine.draw import Drawn
from legokv.engine.jobs import Job
from legokv.engine.request import Finished, Usage
from legokv.engine.transfer import Transfer
from legokv.model.config import ModelConfig
from legokv.model.rope import layer_frequencies
from legokv.ops.rotary import cos_sin, rotate
from legokv.step.sequence import TokenSequence, chunk_sequence

FOREIGN_TOKENS = 128
"""How many tokens stand before a chunk in its second pass, at most."""

# Of many kinds of text, none of which is about what documents are about.
FOREIGN_TEXT = (
    "The harbour office opens at eight, except on the first Monday of each month, when the ledgers "
    "are counted and nobody answers the bell. Anna took the early train in 1974 and later wrote "
    "that a cold wind had followed her through three countries. Water boils at a lower temperature "
    'in the mountains, so rice needs more time there. "Do you know the way to the old mill?" '
    "asked the boy, but the miller only pointed north. A committee of nine members decided, by "
    "five votes to four, to sell the bridge. Copper, tin and zinc were shipped in barrels; the "
    "price of 1,250 crowns included insurance. Every evening the radio played the same waltz."
)


class RankJob(Job):
    """Rank one chunk and keep that with its KV, unless it is ranked; ends with a Finished.

    The chunk is computed once more, behind `foreign` tokens in place of all it was compiled behind.
    """

    waits_in_line = False

    def __init__(
        self, chunk: Chunk, foreign: Sequence[int], config: ModelConfig, page_size: int
    ) -> None:
        # The context may be no longer than the chunk.
        room = max(config.context_len - chunk.num_tokens, 0)
        self._foreign = tuple(foreign[:room])
        self._config, self._page_size = config, page_size
        self._transfer: Transfer | None = None
        num_tokens = len(self._foreign) + chunk.num_tokens
        super().__init__((chunk,), -(-num_tokens // page_size))

    @property
    def _resident(self) -> Resident:
        assert self.grant is not None, "a job works while it holds its pages"
        return self.grant.resident_of(self.chunks[0])

    def start(self, transfer: Transfer) -> bool:
        if self._resident.ranking is not None:
            transfer.keep_ranking(self._resident)
            self._over(0)
            return False
        assert self.grant is not None, "a job starts after it was granted its pages"
        self._transfer = transfer
        ids = (*self._foreign, *self.chunks[0].token_ids)
        self.sequences = [chunk_sequence(ids, self.grant.private_pages, self._page_size)]
        return True

    def computed(self, sequence: TokenSequence, logits: Tensor, drawn: Sequence[Drawn]) -> bool:
        assert self.grant is not None, "a job works while it holds its pages"
        assert self._transfer is not None, "a job is computed after it was started"
        chunk, before = self.chunks[0], len(self._foreign)
        stored = self._transfer.export(self._resident.pages, chunk.num_tokens)
        again = self._transfer.export(self.grant.private_pages, before + chunk.num_tokens)
        moves = key_moves(stored[:, 0], again[:, 0, before:], chunk.start - before, self._config)
        self._resident.ranking = moves
        self._transfer.keep_ranking(self._resident)
        self._over(before + chunk.num_tokens)
        return True

    def _over(self, num_computed: int) -> None:
        length = self.chunks[0].num_tokens
        usage = Usage(length, length, 0, 0, 1, compiled_tokens=num_computed)
        self.events.put(Finished("stop", usage))


def key_moves(stored: Tensor, again: Tensor, turn: int, config: ModelConfig) -> NDArray[np.float32]:
    """How far keys [L, n, G, D] lie apart, the mean over layers: float32 [n].

    turn: by how many positions the stored ones stand further than those computed `again`.
    """
    total = torch.zeros(stored.shape[1])
    for kind, one, other in zip(config.layers, stored, again, strict=True):
        inv_freq = torch.tensor(layer_frequencies(kind, config), dtype=torch.float32)
        turned = rotate(other, *cos_sin(torch.tensor([[turn]]), inv_freq))
        total += (turned - one.float()).flatten(1).norm(dim=1)
    moves: NDArray[np.float32] = (total / len(config.layers)).numpy()
    return moves
