"""A prompt's answer, token by token, from the page tables of whatever method placed it."""

from benchmarks.reuse.linked_model import LinkedModel, Placed
from legokv.step.batch import step_batch
from legokv.step.tails import tails_behind


def answer(model: LinkedModel, placed: Placed, max_tokens: int, end: str = "\n") -> str:
    """The most likely next tokens until `end`, an end of text, or `max_tokens`.

    The prompt must have been placed with room for max_tokens - 1 more tokens.
    """
    tokenizer, ends = model.tokenizer, model.facts.model.eos_token_ids
    ids: list[int] = []
    pages, size = placed.private_pages, model.page_size
    tail = tails_behind(placed.link, placed.sequence, pages, size, num_answers=1).tails[0]
    logits = model.compute(placed)
    while len(ids) < max_tokens:
        token = int(logits[-1].argmax())
        if token in ends:
            break
        ids.append(token)
        if end in tokenizer.decode(ids).lstrip() or len(ids) == max_tokens:
            break
        number = len(ids) - 1
        position = placed.link.prompt_tokens + number
        tail.sequence.follow_with(token, position, int(tail.slots[number]))
        logits = model.runner.run(step_batch([tail.sequence.next(1)]))
    return str(tokenizer.decode(ids)).strip().split(end)[0]
