"""Documents and questions of the serving workload: sentences of examples/documents, shuffled."""

import random
from functools import cache

from benchmarks.record.about import ROOT

WORDS_PER_TOKEN = 0.72
"""Of English prose in SmolLM2's tokens; replies say how many tokens a prompt really had."""


@cache
def _sentences() -> tuple[str, ...]:
    texts = sorted((ROOT / "examples" / "documents").glob("*.txt"))
    joined = " ".join(file.read_text(encoding="utf-8") for file in texts)
    return tuple(part.strip() + "." for part in joined.split(".") if part.strip())


def document(number: int, num_tokens: int) -> str:
    """About `num_tokens` tokens; no two numbers give the same text."""
    dice = random.Random(f"document {number}")
    parts = [f"File {number}."]
    while sum(len(part.split()) for part in parts) < num_tokens * WORDS_PER_TOKEN:
        parts.append(dice.choice(_sentences()))
    return " ".join(parts)


def question(number: int) -> str:
    """A question; no two requests share one, so no answer is another's."""
    return f"Request {number}: say in a few sentences what these files are about."
