import pytest
from tiny_checkpoints import tiny_tokenizer

from legokv.text.stream import TextStream

TEXT = "Größe: 12 µm — 東京 👩‍🔬 ok. STOP here"


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_tokenizer()


def stream(tokenizer, text, stop_words=()):
    out = TextStream(tokenizer.decode, stop_words)
    pieces = []
    for token_id in tokenizer.encode(text, add_special_tokens=False):
        pieces.append(out.push(token_id))
        if out.stopped:
            break
    return [*pieces, out.finish()], out.stopped


def test_pieces_join_to_the_whole_text(tokenizer):
    pieces, _ = stream(tokenizer, TEXT)
    assert "".join(pieces) == TEXT
    assert sum(bool(piece) for piece in pieces) > 10


def test_no_piece_ends_inside_a_character(tokenizer):
    pieces, _ = stream(tokenizer, TEXT)
    assert not any("\ufffd" in piece for piece in pieces)


def test_an_unfinished_character_shows_at_the_end_only(tokenizer):
    ids = tokenizer.encode("東", add_special_tokens=False)
    out = TextStream(tokenizer.decode)
    assert [out.push(token_id) for token_id in ids[:-1]] == [""] * (len(ids) - 1)
    assert out.finish() == "\ufffd"


def test_text_ends_where_a_stop_word_begins_even_across_tokens(tokenizer):
    pieces, stopped = stream(tokenizer, TEXT, ["nothing", " STOP h"])
    assert stopped
    assert "".join(pieces) == TEXT[: TEXT.index(" STOP h")]


def test_the_earliest_of_several_stop_words_ends_the_text(tokenizer):
    pieces, _ = stream(tokenizer, TEXT, ["here", "ok", "STOP"])
    assert "".join(pieces) == TEXT[: TEXT.index("ok")]


def test_the_beginning_of_a_stop_word_is_held_back_and_given_out_when_it_was_none(tokenizer):
    pieces, stopped = stream(tokenizer, "one two three", ["two four"])
    assert not stopped
    assert "".join(pieces) == "one two three"
    assert not any(piece.endswith("two") for piece in pieces)


def test_a_stop_word_that_never_comes_whole_is_given_out_at_the_end(tokenizer):
    pieces, stopped = stream(tokenizer, "one tw", ["two"])
    assert not stopped
    assert "".join(pieces) == "one tw"
    assert pieces[-1] == "tw"


def test_a_decoder_that_drops_the_first_space_loses_none_in_a_stream():
    words = {0: " one", 1: " two", 2: " three", 3: " four", 4: " five", 5: " six"}
    out = TextStream(lambda ids: "".join(words[i] for i in ids).removeprefix(" "))
    assert "".join([*map(out.push, range(6)), out.finish()]) == "one two three four five six"


def test_a_stop_word_that_begins_where_none_may_stop_is_text_and_the_next_one_ends_it(tokenizer):
    ids = tokenizer.encode("stop, go, stop, go", add_special_tokens=False)
    out = TextStream(tokenizer.decode, ["stop", "go"])
    text = ""
    for number, token_id in enumerate(ids):
        text += out.push(token_id, may_stop=number > 2)
        if out.stopped:
            break
    first = tokenizer.decode(ids[:3])
    rest = tokenizer.decode(ids)[len(first) :]
    assert text == first + rest[: min(rest.find("stop"), rest.find("go"))]
