"""What each token writes: texts that join to the answer, and bytes that join to it in UTF-8."""

import random

import pytest
from sentencepiece_like import byte_ids, sentencepiece_tokenizer
from small_tokenizer import small_tokenizer

from legokv.text.spelling import Spelled, Spelling
from legokv.text.tokenizer import Tokenizer

TOKENIZERS = {
    "byte-level": small_tokenizer,
    "byte fallback": lambda: sentencepiece_tokenizer("prepend"),
    "metaspace": lambda: sentencepiece_tokenizer("first"),
}


def spelled(tokenizer: Tokenizer, ids: list[int]) -> list[Spelled]:
    spelling = Spelling(tokenizer)
    return [spelling.push(i, last=n == len(ids)) for n, i in enumerate(ids, 1)]


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("text", ["Größe 東京", "👩‍🔬 a", "e\u0301", "two  blanks "])
def test_texts_and_bytes_join_to_the_answer(kind: str, text: str) -> None:
    tokenizer = TOKENIZERS[kind]()
    ids = tokenizer.encode(text, first=True)
    tokens = spelled(tokenizer, ids)
    assert "".join(token.text for token in tokens) == tokenizer.decode(ids) == text
    assert b"".join(token.bytes for token in tokens) == text.encode()


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_texts_of_any_tokens_join_to_their_decode(kind: str) -> None:
    tokenizer, draw = TOKENIZERS[kind](), random.Random(3)
    for _ in range(500):
        ids = draw.choices(range(tokenizer.vocab_size), k=8)
        texts = [token.text for token in spelled(tokenizer, ids)]
        assert "".join(texts) == tokenizer.decode(ids), ids


def test_the_token_that_ends_a_character_has_the_whole_of_it_and_each_its_own_byte() -> None:
    tokens = spelled(small_tokenizer(), small_tokenizer().encode("東"))
    assert [token.text for token in tokens] == ["", "", "東"]
    assert [token.bytes for token in tokens] == [b"\xe6", b"\x9d", b"\xb1"]


def test_a_token_that_no_text_shows_has_a_name_alone() -> None:
    tokenizer = small_tokenizer()
    ids = tokenizer.encode_template("a<|im_end|>b")
    assert [(token.name, token.text) for token in spelled(tokenizer, ids)] == [
        ("a", "a"),
        ("<|im_end|>", ""),
        ("b", "b"),
    ]


def test_a_first_token_has_no_blank_where_the_decode_has_none() -> None:
    tokenizer = sentencepiece_tokenizer()
    blank, letter = tokenizer.encode(" a")
    spelling = Spelling(tokenizer)
    assert spelling.likely(blank).bytes == b""
    spelling.push(letter, last=False)
    assert spelling.likely(blank) == Spelled("▁", " ", b" ")


def test_a_likely_token_that_is_part_of_a_character_has_its_byte() -> None:
    (first, *_) = byte_ids("東")
    likely = Spelling(sentencepiece_tokenizer()).likely(first)
    assert likely == Spelled("<0xE6>", "\ufffd", b"\xe6")
