"""Answers' tokens as they were drawn: whose they are, behind what, and for how long."""

from pathlib import Path

from small_tokenizer import small_tokenizer

from legokv.engine.request import Token
from legokv.serving.answers import AnswersSoFar, Drawn
from legokv.serving.drawn import DrawnAnswers
from legokv.serving.question import question_from_fields
from legokv.serving.settings import Settings
from legokv.text.conversation import Conversation, ConversationFormats, DocumentPart, Turn


def test_an_answer_is_found_in_its_namespace_behind_its_prompt_by_its_text_alone() -> None:
    drawn = DrawnAnswers(100)
    drawn.put("a", "place", Drawn(" Orrin.\n", (5, 6)))
    assert drawn.find("a", "place", "Orrin.") == (5, 6)
    assert drawn.find("b", "place", "Orrin.") is None
    assert drawn.find("a", "other", "Orrin.") is None
    assert drawn.find("a", "place", "Tal.") is None


def test_those_least_recently_used_are_forgotten() -> None:
    drawn = DrawnAnswers(4)
    for text in ("one", "two"):
        drawn.put("a", "place", Drawn(text, (1, 2)))
    assert drawn.find("a", "place", "one") == (1, 2)
    drawn.put("a", "place", Drawn("three", (3, 4)))
    assert drawn.find("a", "place", "two") is None
    assert drawn.find("a", "place", "one") == (1, 2)
    drawn.put("a", "place", Drawn("long", (1,) * 5))
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
    drawn = DrawnAnswers(4)
    for number in range(100):
        drawn.put("a", f"place {number}", Drawn("", ()))
    assert drawn.find("a", "place 0", "") is None
    assert not drawn._ids
