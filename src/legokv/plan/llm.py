"""The config.json that TensorRT-LLM 1.2 reads beside rank0.engine, by its EngineConfig's keys.

It tells TensorRT-LLM's tools what the engine is. Its own runners and executor cannot run one: they
bind the inputs of its models, and ours are those of `legokv.step.graph`.
"""

import importlib
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import PREFILL
from legokv.model.config import ModelConfig
from legokv.plan.builders import PlanBuilder

FLAVOUR = "tensorrt-llm"
# In a folder of its own: the engine folder has the checkpoint's config.json already.
CONFIG_FILE = "tensorrt-llm/config.json"


def write_llm_config(folder: Path, model: ModelConfig, dtype: str, plan: PlanFacts) -> None:
    """Put config.json beside the engine folder's rank0.engine, with the installed version."""
    config = llm_config(model, dtype, plan, version("tensorrt-llm"))
    (folder / CONFIG_FILE).write_text(
        json.dumps(config, indent=4, allow_nan=False) + "\n", encoding="utf-8"
    )


def llm_config(model: ModelConfig, dtype: str, plan: PlanFacts, installed: str) -> dict[str, Any]:
    """What EngineConfig reads: the model, the plan's limits, the version of TensorRT-LLM."""
    return {
        "version": installed,
        "pretrained_config": _pretrained(model, dtype),
        "build_config": _build(model, plan),
    }


def _pretrained(model: ModelConfig, dtype: str) -> dict[str, Any]:
    return {
        "architecture": model.architecture,
        "dtype": dtype,
        "logits_dtype": "float32",
        "vocab_size": model.vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_size": model.head_size,
        "hidden_act": "silu",
        "norm_epsilon": model.norm_eps,
        "max_position_embeddings": model.context_len,
        "position_embedding_type": "rope_gpt_neox",
        "qk_layernorm": model.qk_norm,
        "mapping": {"world_size": 1, "tp_size": 1, "pp_size": 1},
    }


def _build(model: ModelConfig, plan: PlanFacts) -> dict[str, Any]:
    tokens = plan.profiles[PREFILL].ranges["T"]
    return {
        "max_input_len": model.context_len,
        "max_seq_len": model.context_len,
        "max_batch_size": plan.profiles[PREFILL].ranges["B"].most,
        "max_beam_width": 1,
        "max_num_tokens": tokens.most,
        "opt_num_tokens": tokens.usual,
        "force_num_profiles": len(plan.profiles),
        "strongly_typed": True,
    }


def open_llm_builder(dtype: str) -> PlanBuilder:
    """The TensorRT objects inside TensorRT-LLM's, built by its own `build_engine`."""
    wrapper, trt = importlib.import_module("tensorrt_llm"), importlib.import_module("tensorrt")
    builder = wrapper.Builder()
    network = builder.create_network()
    config = builder.create_builder_config(precision=dtype)
    return PlanBuilder(
        trt,
        trt.Logger(trt.Logger.WARNING),
        builder.trt_builder,
        network.trt_network,
        config.trt_builder_config,
        serialize=lambda: builder.build_engine(network, config),
    )
