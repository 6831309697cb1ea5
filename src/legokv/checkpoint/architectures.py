"""The architectures this project compiles, and how each differs from plain Llama."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Architecture:
    """One Hugging Face model class.

    `biases` says which projections have one: none, the fused QKV only, or what config.json's
    `attention_bias` and `mlp_bias` say. The other fields are what transformers assumes where
    config.json has no such key.
    """

    name: str
    model_type: str
    biases: Literal["none", "qkv", "config"]
    qk_norm: bool = False
    default_head_size: int | None = None
    default_window: int | None = None
    kv_heads_optional: bool = False


ARCHITECTURES = {
    architecture.name: architecture
    for architecture in (
        Architecture("LlamaForCausalLM", "llama", biases="config", kv_heads_optional=True),
        Architecture("MistralForCausalLM", "mistral", biases="none", default_window=4096),
        Architecture("Qwen2ForCausalLM", "qwen2", biases="qkv"),
        Architecture(
            "Qwen3ForCausalLM", "qwen3", biases="config", qk_norm=True, default_head_size=128
        ),
    )
}
