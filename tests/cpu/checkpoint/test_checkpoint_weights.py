"""Stored tensors become the decoder's: stacked, cast, held once, or refused by name."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_tiny_checkpoint
from transformers import AutoModelForCausalLM

from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.layout import HEAD, with_its_head
from legokv.checkpoint.tensor_table import read_tensor_table
from legokv.errors import UnsupportedModel
from legokv.model.decoder import decoder_from_weights

LAYER = "model.layers.1"


@pytest.fixture
def own_copy(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A llama checkpoint the test may damage."""
    return Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "copy"))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    return load_weights(folder, read_model_config(folder), dtype)


def test_query_key_value_and_gate_up_are_stacked_in_that_order(
    tiny_checkpoint: Callable[[str], Path],
) -> None:
    folder = tiny_checkpoint("llama-biased")
    stored, loaded = load_file(folder / "model.safetensors"), load(folder)
    parts = [f"{LAYER}.self_attn.{name}_proj" for name in "qkv"]
    assert torch.equal(
        loaded["layers.1.qkv.weight"], torch.cat([stored[f"{part}.weight"] for part in parts])
    )
    assert torch.equal(
        loaded["layers.1.qkv.bias"], torch.cat([stored[f"{part}.bias"] for part in parts])
    )
    parts = [f"{LAYER}.mlp.gate_proj", f"{LAYER}.mlp.up_proj"]
    assert torch.equal(
        loaded["layers.1.gate_up.weight"], torch.cat([stored[f"{part}.weight"] for part in parts])
    )
    assert torch.equal(loaded["layers.1.down.weight"], stored[f"{LAYER}.mlp.down_proj.weight"])
    assert torch.equal(loaded["head.weight"], stored["lm_head.weight"])


def test_a_tied_model_has_no_head(tiny_checkpoint: Callable[[str], Path]) -> None:
    assert "head.weight" not in load(tiny_checkpoint("llama"))


def test_query_and_key_norms_are_kept_apart(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("qwen3")
    stored, loaded = load_file(folder / "model.safetensors"), load(folder)
    for name in ("q_norm", "k_norm"):
        expected = stored[f"{LAYER}.self_attn.{name}.weight"]
        assert torch.equal(loaded[f"layers.1.{name}.weight"], expected)


def test_weights_are_cast_to_the_dtype_asked_for(tiny_checkpoint: Callable[[str], Path]) -> None:
    full = load(tiny_checkpoint("llama"))
    half = load(tiny_checkpoint("llama"), torch.bfloat16)
    assert full.keys() == half.keys()
    for name, tensor in half.items():
        assert torch.equal(tensor, full[name].to(torch.bfloat16))


def test_shards_read_as_one_file_does(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    sharded = make_tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    whole, parts = load(tiny_checkpoint("llama")), load(sharded)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_no_mapping_of_the_file_outlives_the_load(tiny_checkpoint: Callable[[str], Path]) -> None:
    folder = tiny_checkpoint("llama")
    weights = load(folder)
    assert weights
    assert str(folder) not in Path("/proc/self/maps").read_text()


def test_a_missing_tensor_is_named(own_copy: Path) -> None:
    rewrite(own_copy, lambda tensors: tensors.pop(f"{LAYER}.mlp.up_proj.weight"))
    with pytest.raises(UnsupportedModel, match=r"layers\.1\.mlp\.up_proj\.weight is missing"):
        load(own_copy)


def test_a_wrong_shape_names_both_shapes(own_copy: Path) -> None:
    name = f"{LAYER}.self_attn.k_proj.weight"
    rewrite(own_copy, lambda tensors: tensors.update({name: torch.zeros(48, 64)}))
    with pytest.raises(UnsupportedModel, match=r"shape \[48, 64\], config.json asks for \[32, 64"):
        load(own_copy)


def test_a_tensor_the_model_would_not_use_is_refused(own_copy: Path) -> None:
    name = f"{LAYER}.self_attn.q_proj.bias"
    rewrite(own_copy, lambda tensors: tensors.update({name: torch.zeros(64)}))
    with pytest.raises(UnsupportedModel, match=r"1 tensors LlamaForCausalLM does not use.*q_proj"):
        load(own_copy)


def test_a_stored_rotary_table_and_a_second_copy_of_a_tied_head_are_ignored(own_copy: Path) -> None:
    spare = {
        f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.zeros(8),
        "lm_head.weight": load_file(own_copy / "model.safetensors")["model.embed_tokens.weight"],
    }
    rewrite(own_copy, lambda tensors: tensors.update(spare))
    assert "head.weight" not in load(own_copy)


def test_a_tied_config_with_another_head_stored_is_untied_as_transformers_does(
    own_copy: Path,
) -> None:
    rewrite(own_copy, lambda t: t.update({HEAD: t["model.embed_tokens.weight"].flip(0).clone()}))
    with pytest.raises(UnsupportedModel, match=r"lm_head\.weight is not the embedding"):
        load(own_copy)  # as an engine of before, whose facts say that they are tied
    stored = read_tensor_table(own_copy)
    config = with_its_head(read_model_config(own_copy), stored)
    assert not config.tied_embeddings
    decoder = decoder_from_weights(config, load_weights(own_copy, config, torch.float32))
    reference = AutoModelForCausalLM.from_pretrained(own_copy, dtype=torch.float32)
    ids = torch.tensor([3, 17, 90])
    expected = reference(ids[None]).logits[0, -1]
    assert torch.equal(decoder.head.weight, reference.lm_head.weight)
    assert not torch.equal(reference.lm_head.weight, reference.model.embed_tokens.weight)
    assert expected.shape == (384,)


def test_a_tensor_in_two_shards_is_refused_with_both_named(tmp_path: Path) -> None:
    sharded = make_tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    one = load_file(first)
    name = next(iter(one))
    save_file({**load_file(second), name: one[name] * 2}, second)
    with pytest.raises(UnsupportedModel, match=f"{name} stands in {first.name} and in"):
        load(sharded)


def test_an_adapter_beside_the_weights_is_refused(own_copy: Path) -> None:
    (own_copy / "adapter_config.json").write_text("{}")
    with pytest.raises(UnsupportedModel, match=r"holds an adapter.*merge it into"):
        load(own_copy)


def header(entry: object) -> bytes:
    text = json.dumps(entry).encode()
    return len(text).to_bytes(8, "little") + text


DAMAGED: dict[str, tuple[bytes, str]] = {
    "pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 2104556\n",
        "is a Git LFS pointer, not the file itself: run git lfs pull",
    ),
    "empty": (b"", "is not a safetensors file"),
    "nested": ((400_000).to_bytes(8, "little") + b"[" * 400_000, "nested too deep"),
    "list": (header([1, 2]), "holds an? (array|list), not a JSON object"),
    "length": ((2**63).to_bytes(8, "little") + b"{}", "is not a safetensors file"),
    "backwards": (
        header({"a": {"dtype": "I8", "shape": [1], "data_offsets": [5, 2]}}),
        "a ends at byte",
    ),
    "text": (
        header({"a": {"dtype": "I8", "shape": ["1"], "data_offsets": [0, 1]}}),
        "the header's entry for a is damaged",
    ),
    "negative": (
        header({"a": {"dtype": "I8", "shape": [1], "data_offsets": [-4, 1]}}),
        "the header's entry for a is damaged",
    ),
    "bare": (header({"a": 5}), "the header's entry for a is damaged"),
    "type": (
        header({"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}),
        "a names no type",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_refused_in_one_sentence(name: str, own_copy: Path) -> None:
    content, reason = DAMAGED[name]
    (own_copy / "model.safetensors").write_bytes(content)
    with pytest.raises(UnsupportedModel, match=reason) as refused:
        load(own_copy)
    assert "\n" not in str(refused.value)


def test_tensors_that_lie_over_each_other_are_refused(own_copy: Path) -> None:
    file = own_copy / "model.safetensors"
    body = file.read_bytes()
    length = int.from_bytes(body[:8], "little")
    entries = json.loads(body[8 : 8 + length])
    one, two = (f"{LAYER}.mlp.{part}_proj.weight" for part in ("gate", "up"))
    entries[one]["data_offsets"] = entries[two]["data_offsets"]
    file.write_bytes(header(entries) + body[8 + length :])
    with pytest.raises(UnsupportedModel, match="can't be read"):
        load(own_copy)


def test_quantised_weights_are_refused(own_copy: Path) -> None:
    name = f"{LAYER}.mlp.down_proj.weight"
    rewrite(own_copy, lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    with pytest.raises(UnsupportedModel, match="stored as I8: only BF16, F16, F32"):
        load(own_copy)


def test_a_file_cut_short_says_how_short(own_copy: Path) -> None:
    file = own_copy / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(UnsupportedModel, match=f"{len(content) - 100} bytes of {len(content)}"):
        load(own_copy)


def test_a_file_of_something_else_is_refused(own_copy: Path) -> None:
    (own_copy / "model.safetensors").write_bytes(b"not a header at all, only words")
    with pytest.raises(UnsupportedModel, match="is not a safetensors file"):
        load(own_copy)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    sharded = make_tiny_checkpoint("llama", tmp_path / "sharded", max_shard_size="100KB")
    lost = sorted(sharded.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(UnsupportedModel, match=f"{lost.name} is missing"):
        load(sharded)


def test_a_shard_outside_the_folder_is_refused(own_copy: Path) -> None:
    (own_copy / "model.safetensors").unlink()
    index = own_copy / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(UnsupportedModel, match=r"outside its folder: \.\./secret"):
        load(own_copy)


def test_pickled_weights_are_refused(own_copy: Path) -> None:
    (own_copy / "model.safetensors").rename(own_copy / "pytorch_model.bin")
    with pytest.raises(UnsupportedModel, match=r"pickled weights \(pytorch_model\.bin\)"):
        load(own_copy)


def test_more_layers_in_the_config_than_in_the_file_are_refused(own_copy: Path) -> None:
    config = replace(read_model_config(own_copy), num_layers=4)
    with pytest.raises(UnsupportedModel, match=r"model\.layers\.3\..* is missing"):
        load_weights(own_copy, config, torch.float32)
