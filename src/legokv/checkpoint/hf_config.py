"""A Hugging Face config.json as a ModelConfig, or the sentence why it cannot be one."""

from pathlib import Path

from legokv.checkpoint.config_values import (
    MAX_INT,
    flag,
    number,
    optional_int,
    positive_int,
    token_ids,
)
from legokv.checkpoint.refusals import (
    Architecture,
    known_architecture,
    refuse_narrow_window,
    refuse_uneven_heads,
    refuse_unsupported,
)
from legokv.checkpoint.rope_settings import read_rope
from legokv.errors import UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.text.json_file import JsonObject, json_object


def read_model_config(folder: Path) -> ModelConfig:
    """The model a checkpoint folder describes; UnsupportedModel says what cannot be compiled.

    End-of-text ids come from config.json and generation_config.json together: instruction-tuned
    checkpoints often name the end of a turn only in the latter.
    """
    config = json_object(folder / "config.json")
    architecture = known_architecture(config)
    refuse_unsupported(config)
    model = _model_config(config, architecture, _eos_token_ids(config, folder))
    refuse_narrow_window(config, architecture, model.context_len)
    if model.context_len > MAX_INT:
        raise UnsupportedModel(
            f"config.json extends the context to {model.context_len} tokens: at most {MAX_INT} are "
            "counted"
        )
    _refuse_ids_without_a_row(model)
    return model


def _model_config(
    config: JsonObject, architecture: Architecture, eos_token_ids: tuple[int, ...]
) -> ModelConfig:
    num_heads = positive_int(config, "num_attention_heads")
    num_kv_heads = _num_kv_heads(config, architecture, num_heads)
    head_size = _head_size(config, architecture, num_heads)
    refuse_uneven_heads(num_heads, num_kv_heads, head_size)
    attention_bias = architecture.biases == "config" and flag(config, "attention_bias")
    return ModelConfig(
        architecture=architecture.name,
        vocab_size=positive_int(config, "vocab_size"),
        hidden_size=positive_int(config, "hidden_size"),
        intermediate_size=positive_int(config, "intermediate_size"),
        num_layers=positive_int(config, "num_hidden_layers"),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        norm_eps=number(config, "rms_norm_eps", 1e-6),
        max_positions=positive_int(config, "max_position_embeddings"),
        rope=read_rope(config),
        qkv_bias=architecture.biases == "qkv" or attention_bias,
        out_bias=attention_bias,
        mlp_bias=architecture.model_type == "llama" and flag(config, "mlp_bias"),
        qk_norm=architecture.qk_norm,
        tied_embeddings=flag(config, "tie_word_embeddings"),
        bos_token_id=next(iter(token_ids(config, "bos_token_id")), None),
        eos_token_ids=eos_token_ids,
    )


def _refuse_ids_without_a_row(model: ModelConfig) -> None:
    first = () if model.bos_token_id is None else (model.bos_token_id,)
    highest = max((*first, *model.eos_token_ids), default=0)
    if highest >= model.vocab_size:
        raise UnsupportedModel(
            f"config.json and generation_config.json name token {highest}, the model has "
            f"{model.vocab_size} embedding rows: they do not belong together"
        )


def _num_kv_heads(config: JsonObject, architecture: Architecture, num_heads: int) -> int:
    if config.get("num_key_value_heads") is None and architecture.kv_heads_optional:
        return num_heads
    return positive_int(config, "num_key_value_heads")


def _head_size(config: JsonObject, architecture: Architecture, num_heads: int) -> int:
    head_size = optional_int(config, "head_dim") or architecture.default_head_size
    if head_size is not None:
        return head_size
    hidden_size = positive_int(config, "hidden_size")
    if hidden_size % num_heads:
        raise UnsupportedModel(
            f"hidden size {hidden_size} does not divide into {num_heads} heads and config.json "
            "names no head_dim"
        )
    return hidden_size // num_heads


def _eos_token_ids(config: JsonObject, folder: Path) -> tuple[int, ...]:
    ids = set(token_ids(config, "eos_token_id"))
    if (folder / "generation_config.json").is_file():
        ids.update(token_ids(json_object(folder / "generation_config.json"), "eos_token_id"))
    return tuple(sorted(ids))
