"""A text far too long is refused after so much of it as would fit, and no other text is."""

import pytest

from legokv.errors import InvalidRequest
from legokv.text.length import check_num_tokens


class Words:
    """A token a word, counted; and how many characters were looked at."""

    def __init__(self) -> None:
        self.num_characters = 0

    def encode(self, text: str) -> list[int]:
        self.num_characters += len(text)
        return [0] * len(text.split())


def test_a_text_far_too_long_is_refused_after_its_first_part() -> None:
    words = Words()
    text = "a word or two " * 300_000
    with pytest.raises(InvalidRequest, match=r"the document has more than 1000 tokens in the firs"):
        check_num_tokens(text, words.encode, 1000, "the document")
    assert words.num_characters < len(text) / 100


def test_a_text_that_may_fit_is_not_looked_at() -> None:
    words = Words()
    check_num_tokens("ab " * 2000, words.encode, 1000, "the document")
    assert words.num_characters == 0


@pytest.mark.parametrize("num_words", [1, 1000, 1010])
def test_long_words_that_are_few_pass(num_words: int) -> None:
    text = " ".join(["a" * 200] * num_words)
    check_num_tokens(text, Words().encode, 1000, "the document")
