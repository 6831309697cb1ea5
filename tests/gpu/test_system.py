"""The whole system's steps on the device against the CPU, with a tiny random model."""

import pytest
import torch
from device_runner import Weights, cpu_runner, device_runner
from gpu_kernels import Kernels
from lockstep import Lockstep, whole_conversation

from legokv.link.policy import Policy, everything, legolink, nothing
from legokv.model.config import ModelConfig, RopeConfig
from legokv.model.decoder import Decoder

NUM_PAGES = 96
# A share of the largest logit: sums are taken in another order, and rounded to the type in between.
TOLERANCE = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 6e-2}
POLICIES = {
    "link-5": legolink(5),
    "link-16": legolink(16),
    "naive": nothing,
    "full": everything,
}
LLAMA3 = RopeConfig(
    theta=500000.0,
    variant="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)


def tiny_config(head_size: int = 64, *, qwen: bool = False) -> ModelConfig:
    """A Llama 3, or with biases and norms of q and k as the Qwens have."""
    return ModelConfig(
        architecture="LlamaForCausalLM",
        vocab_size=160,
        hidden_size=96,
        intermediate_size=128,
        num_layers=3,
        num_heads=6,
        num_kv_heads=2,
        head_size=head_size,
        norm_eps=1e-5,
        max_positions=2048,
        rope=RopeConfig(theta=10000.0) if qwen else LLAMA3,
        qkv_bias=qwen,
        out_bias=False,
        mlp_bias=False,
        qk_norm=qwen,
        tied_embeddings=not qwen,
        bos_token_id=None,
        eos_token_ids=(),
    )


def random_weights(config: ModelConfig, dtype: torch.dtype, seed: int) -> Weights:
    """Large enough that attention is far from uniform: a wrong rotation shows in the logits."""
    with torch.device("meta"):
        shapes = {name: weight.shape for name, weight in Decoder(config).state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in sorted(shapes.items()):
        values = torch.randn(shape, generator=generator)
        scaled = 1 + 0.2 * values if "norm" in name else values * (1.5 / shape[-1] ** 0.5)
        weights[name] = scaled.to(dtype)
    return weights


def hold_to_the_cpu(
    kernels: Kernels, config: ModelConfig, weights: Weights, policy: Policy, seed: int
) -> None:
    page_size = 16
    runners = (
        cpu_runner(config, weights, NUM_PAGES, page_size),
        device_runner(kernels, config, weights, NUM_PAGES, page_size),
    )
    lockstep = Lockstep(runners, TOLERANCE[weights["embed.weight"].dtype])
    whole_conversation(lockstep, config.vocab_size, policy, seed)
    assert lockstep.num_steps == 2 + 2 + 1 + 8


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_gives_the_cpu_s_logits(kernels: Kernels, seed: int, policy: str) -> None:
    config = tiny_config()
    weights = random_weights(config, torch.float32, seed)
    hold_to_the_cpu(kernels, config, weights, POLICIES[policy], seed)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_16_bit_models_give_the_cpu_s_logits(
    kernels: Kernels, seed: int, dtype: torch.dtype
) -> None:
    config = tiny_config()
    hold_to_the_cpu(kernels, config, random_weights(config, dtype, seed), legolink(16), seed)


def test_biases_and_norms_of_q_and_k_come_along(kernels: Kernels, seed: int) -> None:
    config = tiny_config(head_size=80, qwen=True)
    weights = random_weights(config, torch.float32, seed)
    hold_to_the_cpu(kernels, config, weights, legolink(16), seed)
