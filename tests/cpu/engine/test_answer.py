"""One answer by itself: which tokens it is given, which text is handed out, and how it ends."""

import pytest
import torch

from legokv.engine.answer import Answer, Ending
from legokv.engine.draw import draw_tokens
from legokv.engine.request import AnswerOptions
from legokv.engine.sampling import Sampler, SamplingOptions
from legokv.text.stream import TextStream

END, A, B = 0, 1, 2


def answer(stop_words=(), **ending):
    """One whose tokens are letters, the end token a bar."""
    text = TextStream(lambda ids: "".join("|ab"[token_id] for token_id in ids), stop_words)
    return Answer(Sampler(SamplingOptions()), text, Ending((END,), **ending), AnswerOptions())


def next_token(answer, logits, late):
    (token_id,) = draw_tokens(logits[None], [answer.draw(0)])
    return answer.take(token_id, logits, late=late)


def drawn(answer, *token_ids, late=False):
    """Text and finish reason after each of these tokens, the likeliest of its step."""
    return [
        (token.text, token.finish_reason)
        for token_id in token_ids
        for token in [next_token(answer, torch.eye(3)[token_id], late)]
    ]


def test_the_end_token_ends_an_answer_and_has_no_text():
    assert drawn(answer(max_tokens=9), A, END) == [("a", None), ("", "stop")]


def test_text_held_back_for_a_stop_word_comes_with_the_end():
    held = answer(("ab",), max_tokens=9)
    assert drawn(held, B, A, END) == [("b", None), ("", None), ("a", "stop")]


def test_a_stop_word_ends_an_answer_before_it():
    assert drawn(answer(("ab",), max_tokens=9), B, A, B) == [
        ("b", None),
        ("", None),
        ("", "stop"),
    ]


@pytest.mark.parametrize(("late", "reason"), [(False, "length"), (True, "length")])
def test_the_last_token_says_length_though_it_may_be_late(late, reason):
    assert drawn(answer(max_tokens=1), A, late=late) == [("a", reason)]


def test_a_late_token_is_the_last():
    assert drawn(answer(max_tokens=9), A, late=True) == [("a", "timeout")]


def test_no_end_token_is_drawn_before_min_tokens():
    assert drawn(answer(max_tokens=9, min_tokens=2), END, END, END) == [
        ("a", None),
        ("a", None),
        ("", "stop"),
    ]
