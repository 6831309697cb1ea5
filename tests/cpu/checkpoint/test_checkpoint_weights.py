"""Stored tensors become the decoder's: stacked, cast, held once, or refused by name."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import make_tiny_checkpoint

from legokv.checkpoint import load_weights, read_model_config
from legokv.errors import UnsupportedModel

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
        "lm_head.weight": torch.zeros(384, 64),
    }
    rewrite(own_copy, lambda tensors: tensors.update(spare))
    assert "head.weight" not in load(own_copy)


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
