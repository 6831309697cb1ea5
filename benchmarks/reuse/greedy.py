"""A prompt's answer, token by token, from the page tables of whatever method placed it."""

import numpy as np
from torch import Tensor

from benchmarks.reuse.linked_model import LinkedModel, Placed
from legokv.step.batch import Piece, step_batch


def answer(model: LinkedModel, placed: Placed, max_tokens: int, end: str = "\n") -> str:
    """The most likely next tokens until `end`, an end of text, or `max_tokens`.

    The prompt must have been placed with room for max_tokens - 1 more tokens.
    """
    tokenizer, ends = model.tokenizer, model.facts.model.eos_token_ids
    ids: list[int] = []
    logits = model.compute(placed)
    while len(ids) < max_tokens:
        token = int(logits[-1].argmax())
        if token in ends:
            break
        ids.append(token)
        if end in tokenizer.decode(ids).lstrip() or len(ids) == max_tokens:
            break
        logits = _next(model, placed, token, len(ids) - 1)
    return str(tokenizer.decode(ids)).strip().split(end)[0]


def _next(model: LinkedModel, placed: Placed, token: int, number: int) -> Tensor:
    """Logits behind generated token `number`."""
    position = placed.link.prompt_tokens + number
    offset, size = position - placed.link.tail_position, model.page_size
    page = placed.private_pages[placed.link.tail_private + offset // size]
    ids, at, slot = (
        np.array([value], np.int32) for value in (token, position, page * size + offset % size)
    )
    piece = Piece(ids, at, at, slot, placed.bound.table)
    return model.forward(step_batch([piece]))
