"""What every peer is asked: the same seeded prompts, in an order that lets each reuse its own."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from benchmarks.record.names import UnknownName

NUM_DOCUMENTS = 8
QUESTION_TOKENS = 32
DECODED_TOKENS = 32
FIRST_PLAIN_TOKEN, VOCABULARY = 17, 49152


@dataclass(frozen=True)
class Task:
    """One measurement. With `decode` it is the time a token, from answers of 1 and 1 + 32 tokens.

    `reuse` is what may be reused; tasks of `peers` are theirs alone. With `answer_tokens` it is the
    time until all prompts are answered with so many, after one that is not timed, whose documents
    are kept by who can; with `shuffled_order` each prompt has the documents in an order of its own.
    """

    name: str
    num_prompts: int = 1
    reuse: str = "nothing"
    reversed_order: bool = False
    decode: bool = False
    peers: tuple[str, ...] = ()
    every_round_new: bool = True
    answer_tokens: int = 1
    shuffled_order: bool = False

    @property
    def longest_answer(self) -> int:
        """In tokens."""
        return max(self.answer_tokens, 1 + DECODED_TOKENS if self.decode else 0)

    def is_for(self, peer: str) -> bool:
        return not self.peers or peer in self.peers


TASKS = (
    Task("full prefill"),
    Task("whole prefix cached", reuse="prefix"),
    Task("link, k = 0", reuse="documents-0", peers=("legokv",)),
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


_MANY = Task(
    "32 askers, one order",
    num_prompts=32,
    reuse="documents",
    peers=("legokv", "vllm"),
    answer_tokens=1 + 3 * DECODED_TOKENS,
)
MANY_ASKERS = (_MANY, replace(_MANY, name="32 askers, shuffled orders", shuffled_order=True))
"""A load that is mostly decoding: many askers over the same few documents. Asked for by name."""


def task(name: str) -> Task:
    known = {each.name: each for each in (*TASKS, *MANY_ASKERS)}
    if name in known:
        return known[name]
    raise UnknownName(f"unknown task '{name}'; known are {', '.join(known)}")


def context_tokens(asked: Sequence[Task], document_tokens: int) -> int:
    """Room for the longest of these: its documents, its question, its answer."""
    answer = max(each.longest_answer for each in asked)
    return NUM_DOCUMENTS * document_tokens + QUESTION_TOKENS + answer


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
    return [
        {"documents": _ordered(documents, asked, f"{number} {n}"), "question": question}
        for n, question in enumerate(questions)
    ]


def _ordered(documents: list[list[int]], asked: Task, seed: str) -> list[list[int]]:
    if not asked.shuffled_order:
        return documents
    return random.Random(f"order {seed}").sample(documents, len(documents))


def _ids(seed: str, length: int) -> list[int]:
    dice = random.Random(seed)
    return [dice.randrange(FIRST_PLAIN_TOKEN, VOCABULARY) for _ in range(length)]
