"""Checkpoints in FP8 and INT4: numbers are read as they are, for CPUs and plans, or refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from quantised_checkpoints import (
    AUTO_FP8,
    COMPRESSED,
    PACKED,
    fp8_checkpoint,
    packed_checkpoint,
    put_config,
)
from safetensors.torch import load_file, save_file

from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.fingerprint import model_fingerprint
from legokv.checkpoint.tensor_table import read_tensor_table
from legokv.checkpoint.weights import (
    dense_weight,
    form_of_few_bits,
    load_kept_weights,
    stored_input_scales,
)
from legokv.errors import UnsupportedModel
from legokv.ops.quantised_weight import FP8, QuantisedWeight

FP8_CONFIGS = pytest.mark.parametrize("config", [AUTO_FP8, COMPRESSED], ids=["auto", "compressed"])
UP = "model.layers.1.mlp.up_proj.weight"


AROUND_0 = "INT4 is read around 0 and in a row's own order: take the unquantised checkpoint"


def packed_with(part: str, change: dict[str, Any]) -> dict[str, Any]:
    """The config of a packed checkpoint, a part of its group changed."""
    group = PACKED["config_groups"]["group_0"]
    changed = group | {part: (group[part] or {}) | change}
    return PACKED | {"config_groups": {"group_0": changed}}


@pytest.fixture
def fp8(tiny_checkpoint: Callable[[str], Path], tmp_path: Path) -> Callable[..., Path]:
    def folder(config: dict[str, Any], **options: Any) -> Path:
        return fp8_checkpoint(tiny_checkpoint("llama"), tmp_path / "fp8", config, **options)

    return folder


@FP8_CONFIGS
def test_its_numbers_and_scales_are_taken_as_they_are_and_all_else_in_the_type(
    fp8: Callable[..., Path], config: dict[str, Any]
) -> None:
    folder = fp8(config)
    model = read_model_config(folder)
    stored = load_file(folder / "model.safetensors")
    assert form_of_few_bits(stored) == "qdq-fp8"
    kept = load_kept_weights(folder, model, torch.bfloat16, "qdq-fp8")
    weight = kept["layers.1.gate_up.weight"]
    assert isinstance(weight, QuantisedWeight)
    assert weight.numbers.dtype == FP8
    rows = stored[UP].shape[0]
    assert torch.equal(weight.numbers[rows:].view(torch.uint8), stored[UP].view(torch.uint8))
    scales = stored[f"{UP}_scale"].bfloat16().flatten().expand(rows)
    assert torch.equal(weight.scales[rows:], scales)
    assert torch.equal(
        dense_weight(kept["embed.weight"], torch.bfloat16),
        stored["model.embed_tokens.weight"].bfloat16(),
    )
    dense = load_weights(folder, model, torch.float32)["layers.1.gate_up.weight"][rows:]
    expected = stored[UP].float() * stored[f"{UP}_scale"].float()
    assert torch.equal(dense, expected)


def test_inputs_are_divided_by_the_largest_of_the_scales_of_a_product_s_parts(
    fp8: Callable[..., Path],
) -> None:
    folder = fp8(COMPRESSED)
    stored = load_file(folder / "model.safetensors")
    scales = stored_input_scales(folder, read_model_config(folder))
    assert len(scales) == 3 * 4
    parts = [f"model.layers.2.self_attn.{name}_proj.input_scale" for name in "qkv"]
    assert scales["layers.2.qkv"] == max(stored[part].bfloat16().item() for part in parts)


def test_inputs_scaled_anew_each_time_have_no_scale_to_take(fp8: Callable[..., Path]) -> None:
    folder = fp8(AUTO_FP8 | {"activation_scheme": "dynamic"}, inputs=None)
    assert stored_input_scales(folder, read_model_config(folder)) == {}


def test_a_product_that_the_checkpoint_keeps_in_floats_stays_so_in_a_plan(
    fp8: Callable[..., Path], tiny_checkpoint: Callable[[str], Path]
) -> None:
    folder = fp8(COMPRESSED)
    stored = load_file(folder / "model.safetensors")
    plain = load_file(tiny_checkpoint("llama") / "model.safetensors")
    del stored[f"{UP}_scale"], stored[UP.replace("weight", "input_scale")]
    save_file(stored | {UP: plain[UP]}, folder / "model.safetensors")
    model = read_model_config(folder)
    kept = load_kept_weights(folder, model, torch.bfloat16, "qdq-fp8")
    assert isinstance(kept["layers.1.gate_up.weight"], torch.Tensor)
    assert isinstance(kept["layers.0.gate_up.weight"], QuantisedWeight)
    assert "layers.1.gate_up" not in stored_input_scales(folder, model)


def test_scales_are_of_the_model_s_fingerprint(fp8: Callable[..., Path]) -> None:
    folder = fp8(COMPRESSED)
    model = read_model_config(folder)
    before = model_fingerprint(model, read_tensor_table(folder), "t")
    stored = load_file(folder / "model.safetensors")
    stored[f"{UP}_scale"][3] *= 2
    save_file(stored, folder / "model.safetensors")
    assert model_fingerprint(model, read_tensor_table(folder), "t") != before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{UP}_scale": None}, f"{UP} is stored as F8_E4M3, and there is no {UP}_scale"),
        ({f"{UP}_scale": torch.ones(3, 1)}, rf"{UP}_scale is F32 \[3, 1\]: FP8 weights \[96, 64\]"),
        ({f"{UP}_scale": torch.ones(12, 8)}, rf"{UP}_scale is F32 \[12, 8\]: FP8 weights"),
        ({f"{UP}_scale": torch.ones(1, 96)}, r"\[1, 96\]: FP8 weights \[96, 64\] have 1 or 96 "),
        (
            {
                "model.norm.weight": torch.ones(64).to(FP8),
                "model.norm.weight_scale": torch.ones(64),
            },
            r"model\.norm\.weight is stored as F8_E4M3: only matrices are read in few bits",
        ),
        ({f"{UP}_scale": torch.full((96, 1), float("nan"))}, f"{UP}_scale is not all above 0"),
        ({f"{UP}_scale": torch.full((96, 1), 3e38)}, f"{UP}_scale is not all above 0 and at most"),
        (
            {UP: torch.tensor([[0x7F, 0xFF, *[0x38] * 62]] * 96, dtype=torch.uint8).view(FP8)},
            f"{UP} holds 192 of 6,144 FP8 numbers that are none: fetch the checkpoint again",
        ),
        ({UP.replace("weight", "k_scale"): torch.ones(1)}, "tensors LlamaForCausalLM does not use"),
    ],
)
def test_scales_that_are_missing_misshapen_or_none_are_refused_by_name(
    fp8: Callable[..., Path], change: dict[str, torch.Tensor | None], message: str
) -> None:
    folder = fp8(COMPRESSED)
    tensors = load_file(folder / "model.safetensors") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=message):
        load_weights(folder, read_model_config(folder), torch.bfloat16)


def test_an_input_scale_that_is_none_is_refused_by_name(fp8: Callable[..., Path]) -> None:
    folder = fp8(AUTO_FP8, inputs=0.0)
    with pytest.raises(UnsupportedModel, match=r"input_scale is 0\.0, which is no scale"):
        stored_input_scales(folder, read_model_config(folder))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, r"quantised \(gptq\): only float32"),
        (COMPRESSED | {"format": "int-quantized"}, r"\(compressed-tensors, int-quantized\)"),
        (packed_with("weights", {"num_bits": 8}), "packs weights as .*'num_bits': 8"),
        (packed_with("weights", {"symmetric": False}), "packs weights as .*'symmetric': False"),
        (packed_with("input_activations", {"num_bits": 8}), "only symmetric INT4 weights alone"),
        (AUTO_FP8 | {"weight_block_size": [128, 128]}, r"with weight_block_size \[128, 128\]"),
        (COMPRESSED | {"kv_cache_scheme": {"num_bits": 8}}, "with kv_cache_scheme"),
        (COMPRESSED | {"sparsity_config": {"format": "sparse-24"}}, "with sparsity_config"),
        (COMPRESSED | {"sparsity_config": "dense"}, "with sparsity_config dense"),
    ],
)
def test_other_quantised_checkpoints_are_refused_with_what_they_are(
    fp8: Callable[..., Path], config: dict[str, Any], message: str
) -> None:
    folder = fp8(COMPRESSED)
    put_config(folder, config)
    with pytest.raises(UnsupportedModel, match=message):
        read_model_config(folder)


def test_a_checkpoint_that_says_its_weights_are_stored_dense_is_taken(
    fp8: Callable[..., Path],
) -> None:
    folder = fp8(COMPRESSED)
    expected = read_model_config(folder)
    dense = {"format": "dense", "global_sparsity": 0.1, "sparsity_structure": "unstructured"}
    put_config(folder, COMPRESSED | {"sparsity_config": dense})
    assert read_model_config(folder) == expected


def test_int4_numbers_and_scales_are_taken_as_they_are_for_plans_and_expanded_for_cpus(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    plain = tiny_checkpoint("llama")
    folder = packed_checkpoint(plain, tmp_path / "int4")
    model = read_model_config(folder)
    stored = load_file(folder / "model.safetensors")
    assert form_of_few_bits(stored) == "qdq-int4"
    kept = load_kept_weights(folder, model, torch.bfloat16, "qdq-int4")
    weight = kept["layers.1.gate_up.weight"]
    assert isinstance(weight, QuantisedWeight)
    assert weight.block == 32
    before = load_file(plain / "model.safetensors")[UP]
    scales = stored[f"{UP}_scale"]
    rows = before.shape[0]
    assert torch.equal(weight.scales[rows:], scales)
    numbers = (before / scales.float().repeat_interleave(32, 1)).round().clamp(-8, 7)
    assert torch.equal(weight.numbers[rows:].float(), numbers)
    dense = load_weights(folder, model, torch.float32)["layers.1.gate_up.weight"]
    assert torch.equal(dense.bfloat16(), weight.dense())
    assert model_fingerprint(model, read_tensor_table(folder), "t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{UP}_scale": None}, f"{UP}_scale is missing"),
        ({f"{UP}_scale": torch.ones(96, 3)}, rf"{UP}_scale is F32 \[96, 3\]"),
        ({f"{UP}_packed": torch.ones(96, 9).int()}, rf"{UP}_packed is I32 \[96, 9\]: \[96, 64\]"),
        ({f"{UP}_packed": None}, f"{UP} is missing"),
        (
            {f"{UP}_g_idx": torch.zeros(64).int()},
            rf"not use, the first is {UP}_g_idx: .*; {AROUND_0}",
        ),
        ({f"{UP}_zero_point": torch.zeros(96, 2)}, rf"first is {UP}_zero_point: .*; {AROUND_0}"),
        (
            {f"{UP}_shape": torch.tensor([96, 63])},
            rf"{UP}_shape is \[96, 63\], and {UP}_packed has",
        ),
        ({f"{UP}_shape": torch.tensor([64, 96])}, r"has \[96, 64\] numbers: nothing says which"),
        ({f"{UP}_shape": torch.arange(2000)}, r"_shape is \[0, 1, 2, 3, 4, 5, 6, 7, 8\], and"),
    ],
)
def test_int4_without_fitting_scales_or_with_more_beside_them_is_refused_by_name(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    change: dict[str, torch.Tensor | None],
    message: str,
) -> None:
    folder = packed_checkpoint(tiny_checkpoint("llama"), tmp_path / "int4")
    tensors = load_file(folder / "model.safetensors") | change
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=message):
        load_weights(folder, read_model_config(folder), torch.bfloat16)
