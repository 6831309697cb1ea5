"""Time to first token of every reuse method in the reuse benchmarks' own harness.

There one step computes a whole prompt and any method can be tried, CacheBlend and guided choices
too; the product's engine serves LegoLink alone. Times of one harness are compared with each other.
"""

import random
from pathlib import Path

from benchmarks.record.clock import TimeLimit, seconds_of
from benchmarks.record.journal import Journal
from benchmarks.record.results import Row
from benchmarks.record.statistics import spread
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import METHODS, Method, share_recomputed
from benchmarks.reuse.prompt import Prompt, TokenIds

EXPERIMENT = "every method"
NUM_CHUNKS = 8
# Room for so many prompts: the documents alone, not rotated, behind each of two heads and as others
# rank them are kept, and a method that ranks holds several while it computes.
PROMPTS = 10
HEAD_TOKENS = 16
TIMED = tuple(name for name, method in METHODS.items() if method.has_documents)


def measure(model: tuple[Path, int], journal: Journal, rounds: int, limit: TimeLimit) -> None:
    """Each method once a round over a head and eight chunks, choosing included, compiling not."""
    folder, chunk_tokens = model
    missing = [_key(name, n) for n in range(rounds) for name in TIMED]
    if limit.over or all(key in journal for key in missing):
        return
    linked = LinkedModel(folder, "bfloat16", "native", pool_tokens(chunk_tokens))
    prompt = random_prompt(chunk_tokens, linked.facts.model.vocab_size)
    for number in range(rounds):
        for name in TIMED:
            if limit.over:
                return
            if _key(name, number) not in journal:
                journal.add(_key(name, number), _timed(linked, prompt, METHODS[name]))


def pool_tokens(chunk_tokens: int) -> int:
    """Room for all that the methods keep, and for what one of them computes meanwhile."""
    return PROMPTS * NUM_CHUNKS * chunk_tokens + 4096


def _timed(model: LinkedModel, prompt: Prompt, method: Method) -> dict[str, float]:
    method.compile(model, prompt)
    share = 0.0

    def first_token() -> None:
        nonlocal share
        placed = method.place(model, prompt)
        model.compute(placed)
        share = share_recomputed(placed)
        model.release(placed)

    return {"seconds": seconds_of(first_token), "share": share}


def random_prompt(chunk_tokens: int, vocabulary: int) -> Prompt:
    dice = random.Random(0)

    def ids(length: int) -> TokenIds:
        return tuple(dice.randrange(17, vocabulary) for _ in range(length))

    passages = tuple(ids(chunk_tokens) for _ in range(NUM_CHUNKS))
    return Prompt("cost", ids(HEAD_TOKENS), passages, ids(32), ())


def _key(name: str, number: int) -> str:
    return f"{EXPERIMENT}/{name}/{number}"


def rows(journal: Journal) -> list[Row]:
    made = []
    for name in TIMED:
        start = f"{EXPERIMENT}/{name}/"
        found = [value for key, value in journal.entries().items() if key.startswith(start)]
        if found:
            timing = spread([value["seconds"] for value in found])
            labels = {"experiment": EXPERIMENT, "method": name, "unit": "seconds"}
            made.append({**labels, **timing.as_row(), "share_recomputed": found[0]["share"]})
    return made
