"""The models that are measured: an 8-billion Llama, and a tiny one to try the scripts on a CPU."""

from dataclasses import replace

from legokv.model.config import ModelConfig, RopeConfig

PAGE_SIZE = 16

LLAMA_8B = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=128256,
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_size=128,
    norm_eps=1e-5,
    max_positions=131072,
    rope=RopeConfig(theta=500000.0),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_embeddings=False,
    bos_token_id=None,
    eos_token_ids=(),
)
TINY = replace(
    LLAMA_8B,
    vocab_size=64,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    max_positions=2048,
    rope=RopeConfig(theta=10000.0),
)
