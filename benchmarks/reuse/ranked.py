"""Scores from the chunks' rankings as the product makes them, alone or times the attention."""

import numpy as np

from benchmarks.reuse import guided
from benchmarks.reuse.linked_model import LinkedModel
from legokv.chunks.chunk import Chunk
from legokv.engine.ranking import FOREIGN_TEXT, FOREIGN_TOKENS, key_moves
from legokv.link.policy import Scores


def scores(model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...]) -> Scores:
    """The ranking of every chunk but the first, which no method here recomputes."""
    foreign = tuple(model.tokenizer.encode(FOREIGN_TEXT)[:FOREIGN_TOKENS])
    first, *rest = chunks
    found = [np.zeros(first.num_tokens, np.float32)]
    for chunk in rest:
        again = model.compile(chunk.token_ids, foreign)
        turn = chunk.start - again.start
        found.append(key_moves(model.keys_of(chunk), model.keys_of(again), turn, model.config))
    return np.concatenate([*found, np.zeros(len(question), np.float32)])


def times_attention(model: LinkedModel, chunks: list[Chunk], question: tuple[int, ...]) -> Scores:
    """The product of both."""
    return guided.scores(model, chunks, question) * scores(model, chunks, question)
