"""Tiny checkpoints in FP8 and INT4, as tools write them: numbers, scales, scales of inputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

AUTO_FP8 = {"quant_method": "fp8", "activation_scheme": "static"}
COMPRESSED = {
    "quant_method": "compressed-tensors",
    "format": "float-quantized",
    "config_groups": {"group_0": {"targets": ["Linear"]}},
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
}

PACKED = {
    "quant_method": "compressed-tensors",
    "format": "pack-quantized",
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {"num_bits": 4, "type": "int", "symmetric": True, "group_size": 32},
            "input_activations": None,
        }
    },
}


def packed_checkpoint(plain: Path, folder: Path) -> Path:
    """`plain` with its layers' matrices as INT4: eight numbers an int32, a scale for each 32."""
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors.pop(name)
        blocks = weight.view(weight.shape[0], -1, 32)
        scale = (blocks.abs().amax(2) / 7).bfloat16()
        numbers = (blocks / scale.float()[..., None]).round().clamp(-8, 7).flatten(1).int()
        tensors[f"{name}_packed"] = packed(numbers)
        tensors[f"{name}_scale"] = scale
        tensors[f"{name}_shape"] = torch.tensor(weight.shape)
    save_file(tensors, folder / "model.safetensors")
    put_config(folder, PACKED)
    return folder


def packed(numbers: Tensor) -> Tensor:
    """Numbers of -8 to 7 [N, K] as int32 [N, K / 8], by plain whole numbers."""
    rows = []
    for row in numbers.tolist():
        words = []
        for at in range(0, len(row), 8):
            word = sum((number + 8) << 4 * place for place, number in enumerate(row[at : at + 8]))
            words.append(word - 2**32 if word >= 2**31 else word)
        rows.append(words)
    return torch.tensor(rows, dtype=torch.int32)


def put_config(folder: Path, config: dict[str, Any]) -> None:
    """Have config.json say how the checkpoint is quantised."""
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"quantization_config": config}))


def fp8_checkpoint(
    plain: Path, folder: Path, config: dict[str, Any], inputs: float | None = 0.03125
) -> Path:
    """`plain` with its layers' matrices in FP8: by output with compressed-tensors, else one scale.

    inputs: the first product's input scale, a larger one for each that follows; None: there is
    none, as where inputs are scaled anew each time.
    """
    shutil.copytree(plain, folder)
    tensors = load_file(folder / "model.safetensors")
    by_output = config["quant_method"] == "compressed-tensors"
    matrices = sorted(name for name in tensors if name.endswith("_proj.weight"))
    for number, name in enumerate(matrices):
        tensors |= in_fp8(tensors[name], name, by_output)
        if inputs is not None:
            scale = torch.tensor([inputs * (1 + number / 64)])
            tensors[name.replace("weight", "input_scale")] = scale
    save_file(tensors, folder / "model.safetensors")
    put_config(folder, config)
    return folder


def in_fp8(weight: Tensor, name: str, by_output: bool) -> dict[str, Tensor]:
    most = weight.abs().amax(1, keepdim=True) if by_output else weight.abs().amax()
    # One in bfloat16, the other in float32, as the two tools write them.
    scale = (most / 448).bfloat16() if by_output else most / 448
    numbers = (weight / scale.float()).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {name: numbers, f"{name}_scale": scale}
