"""What a config.json becomes, in every spelling, and what is refused and why."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoints import VARIANTS

from legokv.checkpoint import read_model_config
from legokv.errors import UnsupportedModel
from legokv.model.config import RopeConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}
QWEN2 = LLAMA | {"architectures": ["Qwen2ForCausalLM"], "num_key_value_heads": 2}
# What else this project reads of a config.json.
KNOWN = (
    *("attention_bias", "bos_token_id", "eos_token_id", "head_dim", "kv_lora_rank", "layer_types"),
    *("max_window_layers", "mlp_bias", "model_type", "num_local_experts", "rope_parameters"),
    *("original_max_position_embeddings", "partial_rotary_factor", "quantization_config"),
    *("rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_sliding_window"),
)
MISTRAL = LLAMA | {"architectures": ["MistralForCausalLM"], "num_key_value_heads": 2}


def write_config(folder: Path, config: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", VARIANTS)
def test_what_transformers_saves_is_read_back(
    name: str, tiny_checkpoint: Callable[[str], Path]
) -> None:
    settings = VARIANTS[name].settings
    model = read_model_config(tiny_checkpoint(name))
    assert model.architecture == VARIANTS[name].architecture
    assert (model.num_layers, model.num_heads, model.hidden_size) == (3, 4, 64)
    assert model.num_kv_heads == settings.get("num_key_value_heads", 2)
    assert model.head_size == settings.get("head_dim", 16)
    assert model.tied_embeddings == settings.get("tie_word_embeddings", False)
    assert model.rope.variant == settings.get("rope_parameters", {}).get("rope_type", "default")
    assert model.eos_token_ids == (2,)


@pytest.mark.parametrize(
    ("name", "biases"),
    [
        ("llama", (False, False, False)),
        ("llama-biased", (True, True, True)),
        ("mistral", (False, False, False)),
        ("qwen2", (True, False, False)),
        ("qwen3", (False, False, False)),
    ],
)
def test_biases_and_query_key_norm_are_the_architectures(
    name: str, biases: tuple[bool, bool, bool], tiny_checkpoint: Callable[[str], Path]
) -> None:
    model = read_model_config(tiny_checkpoint(name))
    assert (model.qkv_bias, model.out_bias, model.mlp_bias) == biases
    assert model.qk_norm == (name == "qwen3")


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2}},
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 5e5, "factor": 2.0}},
    ],
)
def test_every_spelling_of_a_rotary_variant_reads_the_same(
    spelling: dict[str, Any], tmp_path: Path
) -> None:
    model = read_model_config(write_config(tmp_path, LLAMA | spelling))
    assert model.rope == RopeConfig(theta=5e5, variant="linear", factor=2.0)


def test_scaling_without_its_original_context_takes_the_models(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    model = read_model_config(write_config(tmp_path, LLAMA | scaling))
    assert model.rope.original_max_position_embeddings == 2048


@pytest.mark.parametrize(
    ("scaling", "context"),
    [
        (None, 2048),
        ({"rope_type": "yarn", "factor": 4.0}, 8192),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048}, 8192),
        # What the model's authors have extended already is not extended once more.
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}, 2048),
        ({"rope_type": "yarn", "factor": 2.5, "original_max_position_embeddings": 1000}, 2500),
        ({"type": "linear", "factor": 4.0}, 8192),
        (
            {
                **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0},
                **{"high_freq_factor": 4.0, "original_max_position_embeddings": 1024},
            },
            2048,
        ),
    ],
)
def test_the_context_is_as_long_as_rotary_scaling_makes_it(
    scaling: dict[str, Any] | None, context: int, tmp_path: Path
) -> None:
    model = read_model_config(write_config(tmp_path, LLAMA | {"rope_scaling": scaling}))
    assert (model.context_len, model.max_positions) == (context, 2048)


def test_an_extended_context_leaves_rotation_and_fingerprint_as_they_were(tmp_path: Path) -> None:
    scaling = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}
    model = read_model_config(write_config(tmp_path, LLAMA | scaling))
    assert asdict(model)["max_positions"] == 2048
    assert model.rope.original_max_position_embeddings == 2048


def test_a_llama_of_before_grouped_queries_has_as_many_key_heads(tmp_path: Path) -> None:
    model = read_model_config(write_config(tmp_path, LLAMA))
    assert (model.num_kv_heads, model.head_size, model.rope.theta) == (4, 16, 10000.0)


def test_ends_named_only_for_generation_count(tmp_path: Path) -> None:
    write_config(tmp_path, LLAMA | {"eos_token_id": 7})
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    assert read_model_config(tmp_path).eos_token_ids == (5, 7)


def test_a_window_as_wide_as_the_context_is_no_window(tmp_path: Path) -> None:
    read_model_config(write_config(tmp_path, MISTRAL | {"sliding_window": 2048}))
    read_model_config(
        write_config(tmp_path, QWEN2 | {"use_sliding_window": False, "sliding_window": 64})
    )


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown": (LLAMA | {"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported"),
    "experts": (
        LLAMA | {"architectures": ["MixtralForCausalLM"], "num_local_experts": 8},
        r"mixture of experts \(num_local_experts = 8\)",
    ),
    "latent attention": (
        LLAMA | {"architectures": ["DeepseekV3ForCausalLM"], "kv_lora_rank": 512},
        r"multi-head latent attention \(kv_lora_rank = 512\)",
    ),
    "mistral window": (
        MISTRAL | {"sliding_window": 1024},
        "sliding window of 1024 tokens is narrower than the context of 2048",
    ),
    "mistral window nobody wrote down": (
        MISTRAL | {"max_position_embeddings": 32768},
        "sliding window of 4096 tokens is narrower than the context of 32768",
    ),
    "window narrower than the extended context": (
        MISTRAL | {"sliding_window": 2048, "rope_scaling": {"type": "yarn", "factor": 4.0}},
        "sliding window of 2048 tokens is narrower than the context of 8192",
    ),
    "context past all counts": (
        LLAMA | {"rope_scaling": {"type": "linear", "factor": 1e9}},
        "extends the context to 2048000000000 tokens",
    ),
    "qwen window": (
        QWEN2 | {"use_sliding_window": True, "sliding_window": 512, "max_window_layers": 1},
        "sliding window of 512",
    ),
    "sliding layers": (
        QWEN2 | {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 512},
        "sliding window of 512",
    ),
    "linear attention layers": (
        QWEN2 | {"layer_types": ["full_attention", "linear_attention"]},
        "layers of type linear_attention",
    ),
    "dynamic": (
        LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "'dynamic' is not supported: dynamic NTK changes its frequencies",
    ),
    "longrope": (
        LLAMA | {"rope_scaling": {"rope_type": "longrope", "factor": 2.0}},
        "longrope changes its frequencies",
    ),
    "m-rope": (
        QWEN2 | {"rope_scaling": {"type": "default", "mrope_section": [16, 24, 24]}},
        "M-RoPE has several positions per token",
    ),
    "partial": (LLAMA | {"partial_rotary_factor": 0.5}, r"partial rotary embedding \(0.5"),
    "rotary per layer type": (
        LLAMA | {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        r"per layer type \(full_attention\)",
    ),
    "rotary without its factor": (
        LLAMA | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}},
        "'llama3' needs low_freq_factor",
    ),
    "quantised": (
        LLAMA | {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        r"quantised \(gptq\)",
    ),
    "activation": (LLAMA | {"hidden_act": "gelu"}, "activation 'gelu'"),
    "uneven groups": (
        LLAMA | {"num_key_value_heads": 3},
        "4 query heads do not divide into 3 key-value heads",
    ),
    "uneven hidden size": (
        LLAMA | {"num_attention_heads": 5},
        "hidden size 64 does not divide into 5 heads",
    ),
    "odd head": (LLAMA | {"head_dim": 15}, "head size 15 is odd"),
    "no size": (
        {key: value for key, value in LLAMA.items() if key != "vocab_size"},
        "vocab_size must be a positive integer of at most 2147483647, it is None",
    ),
    "endless context": (
        LLAMA | {"max_position_embeddings": 10**18},
        "max_position_embeddings must be a positive integer of at most 2147483647",
    ),
    "epsilon that is none": (LLAMA | {"rms_norm_eps": float("nan")}, "rms_norm_eps must be a posi"),
    "number past all floats": (LLAMA | {"rope_theta": 10**400}, "rope_theta must be a positive"),
    "token without a row": (
        LLAMA | {"eos_token_id": [2, 384]},
        "name token 384, the model has 384 embedding rows",
    ),
    "list of settings": (LLAMA | {"rope_scaling": [1]}, "rope_scaling must be an object"),
    "quantised in a word": (LLAMA | {"quantization_config": "int8"}, "must be an object"),
    "rotary variant in a list": (LLAMA | {"rope_scaling": {"type": ["x"]}}, "is not supported"),
    "layers in lists": (QWEN2 | {"layer_types": [["full"]]}, "layers of type"),
    "window from a word on": (
        QWEN2 | {"use_sliding_window": True, "max_window_layers": "all"},
        "max_window_layers must be a positive integer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compiled_is_refused_with_its_reason(name: str, tmp_path: Path) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(UnsupportedModel, match=reason):
        read_model_config(write_config(tmp_path, config))


def test_a_folder_without_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"config\.json is missing"):
        read_model_config(tmp_path)


DAMAGED = {
    "cut": (b"{", r"config\.json is not JSON"),
    "a list": (b"[]", "holds an? (array|list), not a JSON object"),
    "nested": (b"[" * 200_000, "is nested too deep"),
    "latin": ('{"name": "Grün"}'.encode("latin-1"), r"config\.json is not UTF-8 at byte 12"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\nsize 5\n", "is a Git LFS pointer"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_config_that_is_not_json_is_named(name: str, tmp_path: Path) -> None:
    body, reason = DAMAGED[name]
    (tmp_path / "config.json").write_bytes(body)
    with pytest.raises(UnsupportedModel, match=reason):
        read_model_config(tmp_path)


@pytest.mark.parametrize("value", [None, True, -1, 0.5, 10**400, "word", [], {}, [{}], {"a": []}])
@pytest.mark.parametrize("key", sorted({*QWEN2, *KNOWN}))
def test_no_value_of_any_key_is_more_than_a_refusal(
    key: str, value: object, tmp_path: Path
) -> None:
    with suppress(UnsupportedModel):
        read_model_config(write_config(tmp_path, QWEN2 | {key: value}))
