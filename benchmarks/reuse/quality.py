"""How good each method's answers are: exact match and F1 of greedy answers to questions."""

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.reuse.greedy import answer
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import Method, share_recomputed
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.scores import exact_match, f1

METRICS = ("f1", "exact_match")
MAX_TOKENS = 12


def measure(
    model: LinkedModel, prompt: Prompt, methods: Sequence[Method]
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(method, scores with the answer itself) for each of `methods`, one after another."""
    model.clear()
    for method in methods:
        placed = method.place(model, prompt, reserve_tokens=MAX_TOKENS - 1)
        try:
            text = answer(model, placed, MAX_TOKENS)
        finally:
            model.release(placed)
        yield (
            method.name,
            {
                "f1": f1(text, prompt.answers),
                "exact_match": exact_match(text, prompt.answers),
                "share": share_recomputed(placed),
                "answer": text,
                "gold": prompt.answers[0],
            },
        )
