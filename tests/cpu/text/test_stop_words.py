"""Stop words end a text wherever its pieces begin, at one price however many words there are."""

import random

import pytest
from small_tokenizer import small_tokenizer

from legokv.text.stop_words import StopScan, StopWords
from legokv.text.stream import TextStream


def scanned(text: str, words: list[str], cuts: list[int]) -> tuple[str, bool]:
    scan = StopScan(StopWords(words))
    given = ""
    for start, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
        given += scan.feed(text[start:end])
        if scan.stopped:
            return given, True
    return given + scan.pass_by(""), False


def first_to_end(text: str, words: list[str]) -> int | None:
    """Where the word begins that ends first; the longest, where several end there."""
    ends = [(text.find(word) + len(word), -len(word)) for word in words if word in text]
    end, length = min(ends, default=(0, 0))
    return end + length if ends else None


def test_a_text_ends_before_the_word_that_ends_first_however_it_is_cut() -> None:
    draw = random.Random(2)
    for _ in range(3000):
        text = "".join(draw.choices("abc", k=draw.randrange(1, 20)))
        words = ["".join(draw.choices("abc", k=draw.randrange(1, 6))) for _ in range(4)]
        cuts = sorted(draw.sample(range(len(text) + 1), k=min(3, len(text))))
        at = first_to_end(text, words)
        assert scanned(text, words, cuts) == (text if at is None else text[:at], at is not None)


def test_only_what_may_begin_a_word_is_held_back() -> None:
    scan = StopScan(StopWords(["two four", "wonder"]))
    assert [scan.feed(piece) for piece in ("one t", "wo ", "f", "ive w", "on")] == [
        "one ",
        "",
        "",
        "two five ",
        "",
    ]
    assert scan.pass_by("!") == "won!"


def test_the_steps_of_a_scan_do_not_grow_with_the_number_of_words() -> None:
    def num_lookups(num_words: int) -> int:
        words = StopWords([f"stopword{number}" for number in range(num_words)])
        counted = 0

        class Counted(list[dict[str, int]]):
            def __getitem__(self, state):  # type: ignore[no-untyped-def, override]
                nonlocal counted
                counted += 1
                return super().__getitem__(state)

        words._next = Counted(words._next)
        StopScan(words).feed("stopwor stopstop and so on " * 20)
        return counted

    assert num_lookups(400) == num_lookups(4)


SPELLED = "hi <|im_end|> more"


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("<|im_end|>", "hi "),
        ("i <|im_end|>", "h"),
        ("<|im_end|> m", "hi "),
        ("hi <|im_end|> more", ""),
        ("_end|>", "hi "),
        ("<|im_end|>\n", "hi  more"),
    ],
)
def test_a_stop_word_may_be_or_have_in_it_a_control_token(word: str, text: str) -> None:
    tokenizer = small_tokenizer()
    stream = TextStream(tokenizer, [word])
    given = ""
    for token_id in tokenizer.encode_template(SPELLED):
        given += stream.push(token_id)
        if stream.stopped:
            break
    assert given + stream.finish() == text
    assert stream.stopped == (word in SPELLED)


def test_a_control_token_amid_a_character_stops_there_or_leaves_the_character_whole() -> None:
    tokenizer = small_tokenizer()
    (end,) = tokenizer.encode_template("<|im_end|>")
    first, *rest = tokenizer.encode("東")
    ids = [*tokenizer.encode("a"), first, end, *rest]
    through = TextStream(tokenizer, ["<|im_start|>"])
    assert "".join(map(through.push, ids)) + through.finish() == tokenizer.decode(ids) == "a東"
    ended = TextStream(tokenizer, ["<|im_end|>"])
    assert "".join(map(ended.push, ids[:3])) == "a\ufffd"
    assert ended.stopped


def test_a_control_token_may_not_stop_where_no_word_may() -> None:
    tokenizer = small_tokenizer()
    stream = TextStream(tokenizer, ["<|im_end|>"])
    for token_id in tokenizer.encode_template("a<|im_end|>"):
        stream.push(token_id, may_stop=False)
    assert not stream.stopped
    assert stream.push(tokenizer.encode("b")[0]) == "b"
