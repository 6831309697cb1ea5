"""What every peer is asked: the same seeded prompts, in an order that lets each reuse its own."""

import random
from dataclasses import dataclass

from benchmarks.record.names import UnknownName

NUM_DOCUMENTS = 8
QUESTION_TOKENS = 32
DECODED_TOKENS = 32
FIRST_PLAIN_TOKEN, VOCABULARY = 17, 49152


@dataclass(frozen=True)
class Task:
    """One measurement. With `decode` it is the time a token, from answers of 1 and 1 + 32 tokens.

    `reuse` is what may be reused; `own` tasks are legokv's alone.
    """

    name: str
    num_prompts: int = 1
    reuse: str = "nothing"
    reversed_order: bool = False
    decode: bool = False
    own: bool = False
    every_round_new: bool = True


TASKS = (
    Task("full prefill"),
    Task("whole prefix cached", reuse="prefix"),
    Task("link, k = 0", reuse="documents-0", own=True),
    Task("decode, one sequence", reuse="documents", decode=True),
    Task("documents reordered", reuse="documents", reversed_order=True),
    Task(
        "decode, eight sequences",
        num_prompts=8,
        reuse="documents",
        decode=True,
        every_round_new=False,
    ),
)


def task(name: str) -> Task:
    for each in TASKS:
        if each.name == name:
            return each
    raise UnknownName(f"unknown task '{name}'; known are {', '.join(t.name for t in TASKS)}")


def prompts(asked: Task, round_number: int, document_tokens: int) -> list[dict[str, object]]:
    """The task's prompts in one round, the same for every peer.

    Documents are new each round, so that nothing of an earlier round is reused; the tasks of one
    round share them, and each task has questions of its own.
    """
    number = round_number if asked.every_round_new else "always"
    documents = [_ids(f"document {number} {n}", document_tokens) for n in range(NUM_DOCUMENTS)]
    if asked.reversed_order:
        documents.reverse()
    questions = [
        _ids(f"question {asked.name} {number} {n}", QUESTION_TOKENS)
        for n in range(asked.num_prompts)
    ]
    return [{"documents": documents, "question": question} for question in questions]


def _ids(seed: str, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(FIRST_PLAIN_TOKEN, VOCABULARY) for _ in range(length)]
