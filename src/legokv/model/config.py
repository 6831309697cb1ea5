"""What a model is: sizes and switches, as plain data. Reading a checkpoint is elsewhere."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding whose angle is position times a fixed frequency.

    `variant` is "default", "linear", "llama3" or "yarn"; the other fields are that variant's
    parameters under the names of Hugging Face configs, None where it has no such parameter.
    """

    theta: float
    variant: str = "default"
    factor: float | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    original_max_position_embeddings: int | None = None
    attention_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool | None = None


@dataclass(frozen=True)
class LayerKind:
    """How a layer attends: a token sees all at or before its own place, both turned by `rope`."""

    rope: RopeConfig


@dataclass(frozen=True)
class ModelConfig:
    """A Llama-family decoder. Sizes in elements; `max_positions`, config.json's, in tokens."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    norm_eps: float
    max_positions: int
    rope: RopeConfig
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    qk_norm: bool
    tied_embeddings: bool
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @property
    def context_len(self) -> int:
        """Most tokens of a prompt with its answer: `max_positions`, or what scaling extends it to.

        YaRN's factor is of the original context, the linear one of `max_positions`; Llama 3 and
        plain rotation state the whole. No field, so no fingerprint tells of it.
        """
        rope = self.rope
        original = rope.original_max_position_embeddings or self.max_positions
        base = {"yarn": original, "linear": self.max_positions}.get(rope.variant, 0)
        return max(self.max_positions, int(base * (rope.factor or 1.0)))

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        """The kind of each layer: today one for all. No field, so no fingerprint tells of it."""
        return (LayerKind(self.rope),) * self.num_layers


def scoring_layers(num_layers: int) -> range:
    """The layers whose attention is looked at; those after them need not be computed.

    The latter half of the first quarter. On SmolLM2 these choose as well as deeper ones do, within
    what the cases tell apart (docs/log.md, 2026-11-30), at less than a third of all layers' price.
    """
    end = math.ceil(num_layers / 4)
    return range(end // 2, end)
