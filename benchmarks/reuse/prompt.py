"""A prompt of the reuse benchmarks as token ids: what may be reused, what never is, the gold."""

from dataclasses import dataclass
from itertools import islice

TokenIds = tuple[int, ...]


@dataclass(frozen=True)
class Prompt:
    """One case: `head` (may be empty) and `passages` are chunks; `question` is always computed.

    `answer` is what a gold answer goes on with, `answers` are the texts an answer is scored by.
    `document_chunks` is of how many passages each document is made; none: each is one of its own.
    """

    name: str
    head: TokenIds
    passages: tuple[TokenIds, ...]
    question: TokenIds
    answer: TokenIds
    answers: tuple[str, ...] = ()
    document_chunks: tuple[int, ...] = ()

    @property
    def segments(self) -> tuple[TokenIds, ...]:
        """What may be reused, in order."""
        return (self.head, *self.passages) if self.head else self.passages

    @property
    def documents(self) -> tuple[tuple[TokenIds, ...], ...]:
        """The passages of each document, in order."""
        passages = iter(self.passages)
        counts = self.document_chunks or (1,) * len(self.passages)
        return tuple(tuple(islice(passages, count)) for count in counts)


def without_documents(prompt: Prompt) -> Prompt:
    """The floor: the same question with no passage before it."""
    return Prompt(prompt.name, prompt.head, (), prompt.question, prompt.answer, prompt.answers)
