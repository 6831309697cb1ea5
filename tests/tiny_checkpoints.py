"""Tiny random checkpoints of every supported architecture, with a real tokenizer and template.

Seeded: a variant is the same bytes in every process. Weights are large enough that attention is
far from uniform and norms far from one, so that a wrong rotation, norm or bias shows in the logits.
transformers is imported where one is made: it takes seconds, and most processes make none.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MAX_POSITIONS = 2048
_VOCAB_SIZE = 384
_CORPUS = (
    "The harbour of Vellin has three lighthouses and one ferry, which leaves at seven.",
    "A question is answered from the documents that were registered before it was asked.",
    "Which lighthouse stands on the northern pier? The oldest of the three stands there.",
    "def link(chunks):\n    return [chunk.pages for chunk in chunks]\n",
    "system user assistant You are a helpful assistant. Answer from the documents.\n\n",
)
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True)
class Variant:
    """A family as transformers calls it, and what its config has besides all variants' sizes."""

    family: str
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        return f"{self.family}ForCausalLM"


def _rope(variant: str, theta: float = 10000.0, **parameters: float) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": variant, "rope_theta": theta, **parameters}}


_LLAMA3 = partial(_rope, "llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
_LLAMA = partial(Variant, "Llama")
VARIANTS = {
    "llama": _LLAMA({"tie_word_embeddings": True}),
    "llama-untied": _LLAMA({"head_dim": 32, "num_key_value_heads": 1}),
    "llama-biased": _LLAMA({"attention_bias": True, "mlp_bias": True}),
    # Head sizes that the plugins have kernels for; the others are smaller, to be quick.
    "llama-wide": _LLAMA({"tie_word_embeddings": True, "head_dim": 64}),
    "qwen2-wide": Variant("Qwen2", {"head_dim": 64}),
    "qwen3-wide": Variant("Qwen3", {"head_dim": 128}),
    "llama3": _LLAMA(_LLAMA3(theta=500000.0, original_max_position_embeddings=64)),
    "llama-linear": _LLAMA(_rope("linear", factor=4.0)),
    "llama-yarn": _LLAMA(_rope("yarn", factor=4.0, original_max_position_embeddings=512)),
    "mistral": Variant("Mistral", {"sliding_window": None}),
    "qwen2": Variant("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": Variant("Qwen3", {"head_dim": 32}),
}


def make_tiny_checkpoint(name: str, folder: Path, *, max_shard_size: str = "1GB") -> Path:
    """Write the variant `name` as a Hugging Face folder; a small `max_shard_size` shards it."""
    model = tiny_model(VARIANTS[name])
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def tiny_model(variant: Variant) -> "PreTrainedModel":
    import transformers

    config = getattr(transformers, f"{variant.family}Config")(
        vocab_size=_VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=1,
        eos_token_id=2,
        **({"num_key_value_heads": 2, "head_dim": 16} | variant.settings),
    )
    model = getattr(transformers, variant.architecture)(config).to(torch.float32).eval()
    _randomise(model)
    return model


def tiny_tokenizer() -> "PreTrainedTokenizerFast":
    """A byte-level BPE tokenizer trained on a few sentences; it can spell any text."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<|endoftext|>",
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        chat_template=CHAT_TEMPLATE,
    )


@torch.no_grad()
def _randomise(model: "PreTrainedModel") -> None:
    generator = torch.Generator().manual_seed(20240)
    for name, parameter in sorted(model.named_parameters()):
        values = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.copy_(1.0 + 0.2 * values)
        else:
            parameter.copy_(values * (1.5 / parameter.shape[-1] ** 0.5))
