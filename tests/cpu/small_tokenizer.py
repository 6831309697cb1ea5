"""A real tokenizer small enough to foresee its ids: one token a byte, and a few special ones."""

from collections.abc import Sequence

import tokenizers
from tokenizers import decoders, models, pre_tokenizers

from legokv.text.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>"]


def small_backend(added: Sequence[str] = ()) -> tokenizers.Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    backend.add_tokens(list(added))
    return backend


def small_tokenizer(
    template: str | None = CHATML,
    bos: str | None = None,
    added: Sequence[str] = (),
    **settings: object,
) -> Tokenizer:
    definition = small_backend(added).to_str()
    return Tokenizer(definition, {"bos_token": bos, **settings}, template)
