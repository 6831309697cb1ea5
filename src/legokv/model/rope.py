"""Rotary frequencies of every supported variant, in plain floats. No tensors here.

Only variants whose angle is position times a fixed frequency exist in this project: a stored key
must keep its meaning wherever its chunk is linked.
"""

import math

from legokv.errors import UnsupportedModel
from legokv.model.config import LayerKind, ModelConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_size: int, max_positions: int) -> tuple[float, ...]:
    """Radians per position of each of the `head_size / 2` rotated pairs, fastest first."""
    exponents = [pair / head_size for pair in range(0, head_size, 2)]
    plain = tuple(float(rope.theta) ** -exponent for exponent in exponents)
    if rope.variant == "default":
        return plain
    if rope.variant == "linear":
        factor = _required(rope, "factor", rope.factor)
        return tuple(frequency / factor for frequency in plain)
    if rope.variant == "llama3":
        return _llama3(rope, plain, max_positions)
    if rope.variant == "yarn":
        return _yarn(rope, plain, max_positions)
    raise UnsupportedModel(
        f"rotary variant '{rope.variant}' is not one of default, linear, llama3, yarn"
    )


def score_factor(rope: RopeConfig, max_positions: int) -> float:
    """What a score is multiplied by besides 1/sqrt(head size): 1.0 for all variants but yarn.

    YaRN scales rotated queries and keys by its attention factor; the score gets it squared.
    """
    if rope.variant != "yarn":
        return 1.0
    if rope.attention_factor is not None:
        return rope.attention_factor**2
    factor = _yarn_factor(rope, max_positions)
    if rope.mscale and rope.mscale_all_dim:
        return (_yarn_scale(factor, rope.mscale) / _yarn_scale(factor, rope.mscale_all_dim)) ** 2
    return _yarn_scale(factor, 1.0) ** 2


def layer_frequencies(kind: LayerKind, config: ModelConfig) -> tuple[float, ...]:
    """`inverse_frequencies` of a model's layers of `kind`."""
    return inverse_frequencies(kind.rope, config.head_size, config.max_positions)


def layer_scale(kind: LayerKind, config: ModelConfig) -> float:
    """What a product of query and key is multiplied by in a model's layers of `kind`."""
    scale: float = score_factor(kind.rope, config.max_positions) / config.head_size**0.5
    return scale


def _required(rope: RopeConfig, name: str, value: float | None) -> float:
    if value is None:
        raise UnsupportedModel(f"rotary variant '{rope.variant}' needs '{name}' in config.json")
    return value


def _llama3(rope: RopeConfig, plain: tuple[float, ...], max_positions: int) -> tuple[float, ...]:
    """Llama 3.1's: long waves are divided by `factor`, short ones kept, those between blended."""
    factor = _required(rope, "factor", rope.factor)
    low = _required(rope, "low_freq_factor", rope.low_freq_factor)
    high = _required(rope, "high_freq_factor", rope.high_freq_factor)
    original = rope.original_max_position_embeddings or max_positions

    def scaled(frequency: float) -> float:
        turns = original * frequency / (2 * math.pi)
        kept = min(max((turns - low) / (high - low), 0.0), 1.0)
        return frequency * (kept + (1.0 - kept) / factor)

    return tuple(scaled(frequency) for frequency in plain)


def _yarn(rope: RopeConfig, plain: tuple[float, ...], max_positions: int) -> tuple[float, ...]:
    """YaRN (arXiv 2309.00071): a ramp over the pairs from kept to divided by the factor."""
    factor = _yarn_factor(rope, max_positions)
    first, last = _yarn_ramp(rope, 2 * len(plain), max_positions)
    # A ramp of no width would divide by zero; the width is the one other implementations use.
    width = (last - first) or 0.001

    def scaled(pair: int, frequency: float) -> float:
        divided = min(max((pair - first) / width, 0.0), 1.0)
        return frequency * (1.0 - divided + divided / factor)

    return tuple(scaled(pair, frequency) for pair, frequency in enumerate(plain))


def _yarn_ramp(rope: RopeConfig, head_size: int, max_positions: int) -> tuple[float, float]:
    """The pairs that turn `beta_fast` and `beta_slow` times within the original context."""
    original = rope.original_max_position_embeddings or max_positions

    def pair_turning(turns: float) -> float:
        return head_size * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    first = pair_turning(rope.beta_fast or 32.0)
    last = pair_turning(rope.beta_slow or 1.0)
    if rope.truncate is None or rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    return max(first, 0), min(last, head_size - 1)


def _yarn_factor(rope: RopeConfig, max_positions: int) -> float:
    if rope.factor is not None:
        return rope.factor
    original = _required(
        rope, "original_max_position_embeddings", rope.original_max_position_embeddings
    )
    return max_positions / original


def _yarn_scale(factor: float, mscale: float) -> float:
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0
