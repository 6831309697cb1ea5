"""The tiny llama checkpoint as one GGUF file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import load_file
from tiny_checkpoints import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_tokenizer

from legokv.checkpoint import read_model_config
from legokv.model.config import ModelConfig

# How GGUF calls what a Hugging Face checkpoint calls otherwise.
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.layers.": "blk.",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def write_gguf(
    file: Path,
    checkpoint: Path,
    extra: dict[str, Any] | None = None,
    split: str = "gpt-2",
    without: str = "nothing",
    spelled: Mapping[int, str] | None = None,
) -> Path:
    """The llama checkpoint as llama.cpp's converter would write it, in float32."""
    writer = gguf.GGUFWriter(file, "llama")
    add_settings(writer, read_model_config(checkpoint))
    add_tokenizer(writer, split, spelled)
    for key, value in (extra or {}).items():
        add_extra(writer, key, value)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        if gguf_name(name) != without:
            writer.add_tensor(gguf_name(name), interleaved(name, tensor).numpy())
    _write(writer)
    return file


def write_block_gguf(file: Path, checkpoint: Path, layers: str = "Q8_0") -> Path:
    """The llama checkpoint with its matrices in blocks: Q8_0, or what is named for its layers."""
    writer = gguf.GGUFWriter(file, "llama")
    add_settings(writer, read_model_config(checkpoint))
    add_tokenizer(writer, "gpt-2", None)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        numbers = interleaved(name, tensor).numpy()
        if tensor.dim() == 2:
            kind = gguf.GGMLQuantizationType[layers if ".layers." in name else "Q8_0"]
            blocks = gguf.quants.quantize(numbers, kind)
            writer.add_tensor(gguf_name(name), blocks, raw_dtype=kind)
        else:
            writer.add_tensor(gguf_name(name), numbers)
    _write(writer)
    return file


def _write(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_extra(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, torch.Tensor):
        writer.add_tensor(key, value.numpy())
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_uint32(key, value)


def add_settings(writer: gguf.GGUFWriter, model: ModelConfig) -> None:
    writer.add_name("tiny")
    writer.add_block_count(model.num_layers)
    writer.add_context_length(model.max_positions)
    writer.add_embedding_length(model.hidden_size)
    writer.add_feed_forward_length(model.intermediate_size)
    writer.add_head_count(model.num_heads)
    writer.add_head_count_kv(model.num_kv_heads)
    writer.add_rope_dimension_count(model.head_size)
    writer.add_rope_freq_base(model.rope.theta)
    writer.add_layer_norm_rms_eps(model.norm_eps)
    writer.add_vocab_size(model.vocab_size)


def add_tokenizer(
    writer: gguf.GGUFWriter, split: str, spelled: Mapping[int, str] | None = None
) -> None:
    """The tiny tokenizer; tokens `spelled` otherwise are user-defined ones."""
    tokenizer = tiny_tokenizer()
    definition = tokenizer.backend_tokenizer
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    kinds = [control if token in SPECIAL_TOKENS else normal for token in tokens]
    for number, token in (spelled or {}).items():
        tokens[number], kinds[number] = token, gguf.TokenType.USER_DEFINED
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges_of(definition.to_str()))
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def merges_of(definition: str) -> list[str]:
    return [" ".join(pair) for pair in json.loads(definition)["model"]["merges"]]


def gguf_name(name: str) -> str:
    for theirs, ours in NAMES.items():
        name = name.replace(theirs, ours)
    return name


def interleaved(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """GGUF keeps the two halves a rotation pairs next to each other, for llama's q and k."""
    heads = {"q_proj": 4, "k_proj": 2}
    for part, num_heads in heads.items():
        if part in name:
            halves = tensor.view(num_heads, 2, -1, tensor.shape[-1])
            return halves.transpose(1, 2).reshape(tensor.shape).contiguous()
    return tensor
