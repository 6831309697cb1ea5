"""Pieces of text join to the decode of all ids, whatever the ids, in every kind of vocabulary."""

import random
from collections.abc import Callable

import pytest
import tokenizers
from sentencepiece_like import byte_ids, sentencepiece_backend
from tokenizers import decoders, models, pre_tokenizers

from legokv.text.pieces import DecodedPieces
from legokv.text.stream import TextStream
from legokv.text.tokenizer import Tokenizer

CHARACTERS = ("a", "é", "東", "京", "👩", "\u200d", "\u0301", "ก", " ", "\ufffd")
ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())


def byte_level_backend(decoder: object | None = None) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(
        models.BPE({letter: number for number, letter in enumerate(ALPHABET)}, [])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoder or decoders.ByteLevel()
    backend.add_special_tokens(["<|end|>"])
    return backend


def with_decoder(decoder: object) -> tokenizers.Tokenizer:
    backend = sentencepiece_backend(more=("▁a", "▁▁", "é", "東", "\ufffd"))
    backend.decoder = decoder
    return backend


SPACES, BYTES, JOINED = decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()
BACKENDS: dict[str, Callable[[], tokenizers.Tokenizer]] = {
    "byte-level": byte_level_backend,
    "byte-level in a sequence": lambda: byte_level_backend(
        decoders.Sequence([decoders.ByteLevel(), decoders.Fuse()])
    ),
    "byte fallback": lambda: with_decoder(
        decoders.Sequence([SPACES, BYTES, JOINED, decoders.Strip(" ", 1, 0)])
    ),
    "byte fallback without a blank to strip": lambda: with_decoder(
        decoders.Sequence([SPACES, BYTES, JOINED])
    ),
    "byte fallback and metaspace": lambda: with_decoder(
        decoders.Sequence([BYTES, decoders.Metaspace()])
    ),
    "metaspace": lambda: with_decoder(decoders.Metaspace()),
}


def spelled_ids(backend: tokenizers.Tokenizer, data: bytes) -> list[int]:
    if backend.token_to_id("<0x00>") is not None:
        return [3 + byte for byte in data]
    return [ALPHABET.index(letter) for letter in map(letter_of, data)]


def letter_of(byte: int) -> str:
    return next(letter for letter in ALPHABET if BYTES_OF[letter] == byte)


BYTES_OF = {letter: byte for byte in range(256) for letter in [chr(byte)] if letter in ALPHABET}
BYTES_OF |= dict(
    zip(
        (letter for letter in ALPHABET if ord(letter) >= 256),
        (byte for byte in range(256) if chr(byte) not in ALPHABET),
        strict=True,
    )
)


def random_ids(backend: tokenizers.Tokenizer, draw: random.Random) -> list[int]:
    """Whole characters, parts of some, any token, control tokens and ids without a token."""
    ids: list[int] = []
    size = backend.get_vocab_size()
    for _ in range(draw.randrange(1, 14)):
        kind = draw.random()
        if kind < 0.3:
            ids.append(draw.randrange(size + 2))
        elif kind < 0.45:
            ids.append(draw.randrange(size - 12, size))
        else:
            data = draw.choice(CHARACTERS).encode()
            ids += spelled_ids(backend, data[: draw.randrange(1, 5)])
    return ids


@pytest.mark.parametrize("kind", BACKENDS)
def test_pieces_join_to_the_decode_of_all_ids(kind: str) -> None:
    backend = BACKENDS[kind]()
    tokenizer, draw = Tokenizer(backend.to_str(), {}, None), random.Random(1)
    for _ in range(1500):
        ids = random_ids(backend, draw)
        stream = TextStream(tokenizer)
        pieces = [stream.push(token_id) for token_id in ids]
        assert "".join(pieces) + stream.finish() == backend.decode(ids), ids


@pytest.mark.parametrize("text", ["東京都庁舎 ok", "👨‍👩‍👧‍👦 ok", "ก็ค่ะ ok", "e\u0301\u0327 ok"])
def test_a_decode_alone_gives_characters_of_any_number_of_byte_tokens(text: str) -> None:
    backend = sentencepiece_backend()
    ids = backend.encode(text, add_special_tokens=False).ids
    stream = TextStream(lambda part: backend.decode(list(part)))
    assert "".join(map(stream.push, ids)) + stream.finish() == text


def test_a_run_of_byte_tokens_is_text_when_it_has_ended() -> None:
    backend = sentencepiece_backend()
    pieces = DecodedPieces(lambda ids: backend.decode(list(ids)), set(byte_ids("東京")))
    assert [pieces.push(i) for i in byte_ids("東京")] == [""] * 6
    assert pieces.pending() == "東京"
    assert pieces.push(backend.token_to_id("a")) == "東京a"


def test_a_run_that_is_no_utf_8_in_the_end_is_a_replacement_for_each_of_its_bytes() -> None:
    tokenizer = Tokenizer(sentencepiece_backend().to_str(), {}, None)
    stream = TextStream(tokenizer)
    ids = byte_ids("東京")[:-1]
    assert [stream.push(token_id) for token_id in ids] == [""] * 5
    assert stream.finish() == "\ufffd" * 5 == tokenizer.decode(ids)


def test_pieces_of_a_long_answer_that_is_no_text_take_no_longer_each() -> None:
    decoded: list[int] = []

    def decode(ids: object) -> str:
        decoded.append(len(list(ids)))  # type: ignore[call-overload]
        return "\ufffd" * decoded[-1]

    pieces = DecodedPieces(decode)
    for _ in range(1000):
        pieces.push(0)
    assert max(decoded) <= 8
