"""Answers' tokens as they were drawn: whose they are, behind what, and for how long."""

from datetime import date, timedelta
from pathlib import Path

import pytest
from small_tokenizer import small_tokenizer

from legokv.engine.request import Token
from legokv.serving.answers import AnswersSoFar, Drawn
from legokv.serving.drawn import COUNTED_SECONDS, ENTRY_TOKENS, CountedPrompts, DrawnAnswers
from legokv.serving.question import Question, question_from_fields
from legokv.serving.settings import Settings
from legokv.text.conversation import (
    Conversation,
    ConversationFormats,
    ConversationPrompt,
    DocumentPart,
    Turn,
)


def test_an_answer_is_found_in_its_namespace_behind_its_prompt_by_its_text_alone() -> None:
    drawn = DrawnAnswers(2 * ENTRY_TOKENS)
    drawn.put("a", "place", Drawn(" Orrin.\n", (5, 6)))
    assert drawn.find("a", "place", "Orrin.") == (5, 6)
    assert drawn.find("b", "place", "Orrin.") is None
    assert drawn.find("a", "other", "Orrin.") is None
    assert drawn.find("a", "place", "Tal.") is None


def test_those_least_recently_used_are_forgotten() -> None:
    drawn = DrawnAnswers(2 * (ENTRY_TOKENS + 2))
    for text in ("one", "two"):
        drawn.put("a", "place", Drawn(text, (1, 2)))
    assert drawn.find("a", "place", "one") == (1, 2)
    drawn.put("a", "place", Drawn("three", (3, 4)))
    assert drawn.find("a", "place", "two") is None
    assert drawn.find("a", "place", "one") == (1, 2)
    drawn.put("a", "place", Drawn("long", (1,) * (2 * ENTRY_TOKENS)))
    assert drawn.find("a", "place", "long") is None


def test_a_prompt_s_digest_is_that_of_the_next_turn_s_prompt_up_to_the_answer() -> None:
    tokenizer = small_tokenizer()
    formats = ConversationFormats(tokenizer)
    places = []

    def answer_ids(digest: str, text: str) -> list[int]:
        places.append((digest, text))
        return [1, 2, 3]

    asked = Turn("user", (DocumentPart("a"), "Who?"))
    first = formats.prompt(Conversation((asked,)), {}, answer_ids)
    turns = (asked, Turn("assistant", ("Orrin.",)), Turn("user", ("Why?",)))
    second = formats.prompt(Conversation(turns), {}, answer_ids)
    assert places == [(first.digest, "Orrin.")]
    start = len(first.rest[-1])
    assert second.rest[-1][:start] == first.rest[-1]
    assert second.rest[-1][start : start + 3] == (1, 2, 3)
    other = formats.prompt(Conversation((Turn("user", (DocumentPart("b"), "Who?")),)), {})
    assert (other.head_ids, other.rest) == (first.head_ids, first.rest)
    assert other.digest != first.digest


def test_an_answer_has_no_end_token_and_one_that_a_stop_word_cut_is_left_out() -> None:
    question = question_from_fields({"text_input": b"Who?"}, Settings(engine=Path("/e")))
    tokenizer = small_tokenizer()
    (end,) = tokenizer.encode_template("<|im_end|>")
    ids = tokenizer.encode("Yes")
    whole, cut = (AnswersSoFar(question, tokenizer, (end,)) for _ in range(2))
    for token_id, text in zip(ids, "Yes", strict=True):
        whole.add(Token(token_id, text))
        cut.add(Token(token_id, text if text != "s" else "", "stop" if text == "s" else None))
    whole.add(Token(end, "", "stop"))
    assert whole.drawn(tokenizer.decode) == [Drawn("Yes", tuple(ids))]
    assert cut.drawn(tokenizer.decode) == []


def test_answers_without_a_token_are_not_kept() -> None:
    drawn = DrawnAnswers(1000)
    for number in range(100):
        drawn.put("a", f"place {number}", Drawn("", ()))
    assert drawn.find("a", "place 0", "") is None
    assert not drawn._ids


def test_short_answers_fill_the_bound_by_the_place_that_each_takes() -> None:
    drawn = DrawnAnswers(100 * ENTRY_TOKENS)
    for number in range(200):
        drawn.put("a", f"place {number}", Drawn("Yes", (1, 2)))
    held = [n for n in range(200) if drawn.find("a", f"place {n}", "Yes") is not None]
    assert held == list(range(104, 200))
    drawn.put("a", "place 199", Drawn("Yes", (1, 2)))
    assert drawn.find("a", "place 104", "Yes") is not None


class Now:
    """Time as a test sets it."""

    def __init__(self) -> None:
        self.seconds, self.day = 5.0, date(2026, 11, 30)

    def counted_prompts(self, max_tokens: int = 10_000) -> CountedPrompts:
        return CountedPrompts(max_tokens, clock=lambda: self.seconds, today=lambda: self.day)


def question(text: str) -> Question:
    return question_from_fields({"text_input": text.encode()}, Settings(engine=Path("/e")))


def prompt(*ids: int) -> ConversationPrompt:
    return ConversationPrompt((1,), (0, ids), False)


def test_a_counted_prompt_is_taken_once_by_its_own_question() -> None:
    counted = Now().counted_prompts()
    counted.put(counted.key_of(question("Who?")), prompt(2, 3))
    assert counted.num_tokens == ENTRY_TOKENS + 3
    assert counted.take(question("Why?")) is None
    assert counted.take(question("Who?")) == prompt(2, 3)
    assert counted.num_tokens == 0
    assert counted.take(question("Who?")) is None


def test_a_prompt_that_was_counted_yesterday_or_a_minute_ago_is_laid_out_again() -> None:
    now = Now()
    counted = now.counted_prompts()
    counted.put(counted.key_of(question("Who?")), prompt(2))
    now.day += timedelta(days=1)
    assert counted.take(question("Who?")) is None
    counted.put(counted.key_of(question("Who?")), prompt(3))
    now.seconds += COUNTED_SECONDS - 0.5
    counted.put(counted.key_of(question("Why?")), prompt(4))
    now.seconds += 0.5
    assert counted.take(question("Who?")) is None
    assert counted.take(question("Why?")) == prompt(4)
    counted.put(counted.key_of(question("Who?")), prompt(3))
    now.seconds += COUNTED_SECONDS
    counted.put(counted.key_of(question("Why?")), prompt(4))
    assert counted.num_tokens == ENTRY_TOKENS + 2


def test_counted_prompts_have_a_bound_and_the_oldest_leave_first() -> None:
    counted = Now().counted_prompts(3 * (ENTRY_TOKENS + 2))
    for text in ("one", "two", "one", "three", "four"):
        counted.put(counted.key_of(question(text)), prompt(7))
    assert counted.num_tokens == 3 * (ENTRY_TOKENS + 2)
    held = [t for t in ("one", "two", "three", "four") if counted.take(question(t)) is not None]
    assert held == ["one", "three", "four"]
    assert counted.num_tokens == 0
    counted.put(counted.key_of(question("long")), prompt(*range(4 * ENTRY_TOKENS)))
    assert counted.num_tokens == 0
    assert counted.take(question("long")) is None


def test_where_nothing_was_counted_no_key_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = Now().counted_prompts()

    def no_key(_: Question) -> bytes:
        raise AssertionError("a key was made")

    monkeypatch.setattr(counted, "key_of", no_key)
    assert counted.take(question("Who?")) is None
