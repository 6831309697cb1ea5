"""Tokenizers as SentencePiece models become: a piece a letter, other letters as runs of bytes."""

from collections.abc import Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers

from legokv.text.tokenizer import Tokenizer

FIRST_BYTE = 3
LETTERS = "▁abcdefghijklmnopqrstuvwxyzABCDW.,?\n[]INST/<>|:"
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "[INST] {{ message['content'] }} [/INST]{% endfor %}"
)
FORMS = ("prepend", "always", "first", "never")
"""How a tokenizer puts a blank before a text, if it does."""


def sentencepiece_backend(
    form: str = "prepend", more: Sequence[str] = (), unigram: bool = False
) -> tokenizers.Tokenizer:
    """Of the trained kind "BPE", or "Unigram", whose model matches control tokens by itself."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *more]
    model: Any
    if unigram:
        model = models.Unigram([(piece, 0.0) for piece in pieces], unk_id=0, byte_fallback=True)
    else:
        vocabulary = {piece: number for number, piece in enumerate(pieces)}
        model = models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    backend = tokenizers.Tokenizer(model)
    if form == "prepend":
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        backend.normalizer = normalizers.Sequence(steps)
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=form, split=False)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*parts, decoders.Strip(" ", 1, 0)])
    special = [AddedToken(name, special=True, normalized=False) for name in pieces[:3]]
    backend.add_special_tokens(special)
    return backend


def sentencepiece_tokenizer(
    form: str = "prepend", template: str | None = LLAMA, **settings: object
) -> Tokenizer:
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return Tokenizer(sentencepiece_backend(form).to_str(), names | settings, template)


def byte_ids(text: str) -> list[int]:
    return [FIRST_BYTE + byte for byte in text.encode()]
