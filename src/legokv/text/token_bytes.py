"""Which bytes a token's name stands for, where it does not simply spell them."""

import re
from typing import Any

from tokenizers import Tokenizer

# A byte that is a printable letter of Latin-1 stands for itself in a byte-level vocabulary, the
# others for letters from here on, in order (Radford et al., GPT-2).
_FIRST_STAND_IN = 256
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(_FIRST_STAND_IN + place): byte for place, byte in enumerate(_OTHERS)
}
_BYTE_NAME = re.compile(r"<0x[0-9A-Fa-f]{2}>")


def byte_level_bytes(name: str) -> bytes:
    """What a byte-level vocabulary's token writes; one with other letters in it is plain text."""
    try:
        return bytes(_BYTES[letter] for letter in name)
    except KeyError:
        return name.encode()


def is_byte_level(decoder: Any) -> bool:
    """Whether tokenizer.json's `decoder` reads all tokens' bytes as UTF-8, and does no more."""
    kinds = [part["type"] for part in _parts(decoder)]
    return kinds[:1] == ["ByteLevel"] and set(kinds[1:]) <= {"Fuse"}


def byte_fallback_values(decoder: Any, backend: Tokenizer) -> dict[int, int]:
    """Ids and values of the tokens that the decoder reads as one byte each; none without such."""
    if not any(part["type"] == "ByteFallback" for part in _parts(decoder)):
        return {}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    return {i: int(name[3:5], 16) for name, i in vocabulary.items() if _BYTE_NAME.fullmatch(name)}


def _parts(decoder: Any) -> list[Any]:
    if decoder is None:
        return []
    if decoder["type"] != "Sequence":
        return [decoder]
    return [part for item in decoder["decoders"] for part in _parts(item)]
