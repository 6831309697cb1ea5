"""Rotary frequencies and yarn's score factor are transformers' own, for every variant."""

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from legokv.errors import UnsupportedModel
from legokv.model.config import RopeConfig
from legokv.model.rope import inverse_frequencies, score_factor

# Ours are computed in double, theirs in single precision: a few units in the last place.
RELATIVE = 2e-6
MAX_POSITIONS = 4096
ROPES = {
    "default": RopeConfig(theta=10000.0),
    "default, large theta": RopeConfig(theta=1e6),
    "linear": RopeConfig(theta=10000.0, variant="linear", factor=4.0),
    "llama3": RopeConfig(
        theta=500000.0,
        variant="llama3",
        factor=8.0,
        low_freq_factor=1.0,
        high_freq_factor=4.0,
        original_max_position_embeddings=512,
    ),
    "yarn": RopeConfig(
        theta=10000.0, variant="yarn", factor=4.0, original_max_position_embeddings=1024
    ),
    "yarn without truncation": RopeConfig(
        theta=1e6,
        variant="yarn",
        factor=16.0,
        original_max_position_embeddings=256,
        beta_fast=16.0,
        beta_slow=2.0,
        truncate=False,
    ),
    "yarn with its attention factor": RopeConfig(
        theta=10000.0,
        variant="yarn",
        factor=2.0,
        original_max_position_embeddings=2048,
        attention_factor=1.3,
    ),
    "yarn with mscale": RopeConfig(
        theta=10000.0,
        variant="yarn",
        factor=40.0,
        original_max_position_embeddings=1024,
        mscale=1.0,
        mscale_all_dim=0.7,
    ),
}


def transformers_rotary(rope: RopeConfig, head_size: int) -> LlamaRotaryEmbedding:
    parameters = {"rope_type": rope.variant, "rope_theta": rope.theta}
    for key, value in vars(rope).items():
        if key not in ("theta", "variant") and value is not None:
            parameters[key] = value
    return LlamaRotaryEmbedding(
        LlamaConfig(
            hidden_size=2 * head_size,
            num_attention_heads=2,
            head_dim=head_size,
            max_position_embeddings=MAX_POSITIONS,
            rope_parameters=parameters,
        )
    )


@pytest.mark.parametrize("head_size", [16, 64, 128])
@pytest.mark.parametrize("name", ROPES)
def test_frequencies_equal_transformers(name: str, head_size: int) -> None:
    expected = transformers_rotary(ROPES[name], head_size).inv_freq
    found = inverse_frequencies(ROPES[name], head_size, MAX_POSITIONS)
    assert len(found) == head_size // 2
    torch.testing.assert_close(torch.tensor(found), expected, rtol=RELATIVE, atol=0)


@pytest.mark.parametrize("name", ROPES)
def test_score_factor_is_the_square_of_what_transformers_scales_queries_and_keys_by(
    name: str,
) -> None:
    expected = transformers_rotary(ROPES[name], 64).attention_scaling ** 2
    assert score_factor(ROPES[name], MAX_POSITIONS) == pytest.approx(expected, rel=1e-9)


def test_scaled_variants_differ_from_the_default() -> None:
    plain = inverse_frequencies(ROPES["default"], 64, MAX_POSITIONS)
    for name in ("linear", "yarn"):
        assert inverse_frequencies(ROPES[name], 64, MAX_POSITIONS) != plain


def test_an_unknown_variant_is_refused_by_name() -> None:
    with pytest.raises(UnsupportedModel, match="'dynamic' is not one of default, linear"):
        inverse_frequencies(RopeConfig(theta=1e4, variant="dynamic"), 64, MAX_POSITIONS)


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(UnsupportedModel, match="'linear' needs 'factor'"):
        inverse_frequencies(RopeConfig(theta=1e4, variant="linear"), 64, MAX_POSITIONS)
