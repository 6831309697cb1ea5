"""How a prompt is worded: two worked questions first, then passages, then the question."""

from benchmarks.reuse.prompt import Prompt, TokenIds
from legokv.text.tokenizer import Tokenizer

HEAD = """Answer each question with a few words from the passages.

Passage: The lamp of Anna Holt is green. Peter Vance lives in Oldham.
Question: What colour is the lamp of Anna Holt?
Answer: green
Question: Where does Peter Vance live?
Answer: Oldham

"""


def worded(
    tokenizer: Tokenizer, name: str, passages: list[str], question: str, answers: tuple[str, ...]
) -> Prompt:
    """The prompt with its first answer as the gold; each passage is tokenised alone."""
    return Prompt(
        name=name,
        head=tuple(tokenizer.encode(HEAD)),
        passages=tuple(tuple(tokenizer.encode(passage)) for passage in passages),
        question=tuple(tokenizer.encode(f"\nQuestion: {question}\nAnswer:")),
        answer=gold(tokenizer, answers[0]),
        answers=answers,
    )


def gold(tokenizer: Tokenizer, answer: str) -> TokenIds:
    """An answer's tokens with the line end behind it, as the worked questions have it."""
    return tuple(tokenizer.encode(f" {answer}\n"))
