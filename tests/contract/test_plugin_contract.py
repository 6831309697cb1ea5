"""The C++ plugins against the Python side: names, inputs, outputs, attributes, layouts, symbols."""

import ctypes
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from legokv.export.plugin_ops import OUTPUTS, PACKED, TORCH_OPS
from legokv.kernels.gpu import DTYPES, Launchers
from legokv.kernels.gpu_structs import STRUCTS, layout_of
from legokv.plan.layers import ATTENTION
from legokv.plan.write import HEAD_SIZES, PAGE_SIZES


@pytest.fixture(scope="module")
def info(plugin_library: Path) -> dict[str, Any]:
    return Launchers(plugin_library).info()


@pytest.mark.parametrize("name", TORCH_OPS)
def test_a_plugin_has_the_inputs_and_attributes_of_its_op(info: dict[str, Any], name: str) -> None:
    arguments = TORCH_OPS[name]._schema.arguments
    tensors = [a.name for a in arguments if isinstance(a.type, torch.TensorType)]
    assert info["ops"][name]["inputs"] == tensors
    assert info["ops"][name]["attributes"] == [a.name for a in arguments if a.name not in tensors]


def test_a_plugin_gives_what_its_op_returns(info: dict[str, Any]) -> None:
    outputs = {name: op["outputs"] for name, op in info["ops"].items()}
    assert outputs == {name: list(names) for name, names in OUTPUTS.items()}
    returned = {name: len(op._schema.returns) for name, op in TORCH_OPS.items()}
    assert returned == {name: len(of) for name, of in outputs.items()}


def test_a_list_of_layers_knows_every_attention() -> None:
    assert set(ATTENTION) == {*PACKED, *PACKED.values()} == set(TORCH_OPS) - {"KvImport"}


@pytest.mark.parametrize("name", STRUCTS)
def test_both_sides_lay_arguments_out_alike(info: dict[str, Any], name: str) -> None:
    assert info["structs"][name] == layout_of(STRUCTS[name])


def test_dtypes_have_the_same_numbers(info: dict[str, Any]) -> None:
    ours = {str(dtype).removeprefix("torch."): number for dtype, number in DTYPES.items()}
    assert info["dtypes"] == ours


def test_the_library_says_what_it_was_built_for(
    info: dict[str, Any], plugin_library: Path, record_property: Callable[[str, object], None]
) -> None:
    sizes = ", ".join(f"{what} {info[what]}" for what in ("head_sizes", "page_sizes"))
    record_property(
        "fact",
        f"{plugin_library.name}: {plugin_library.stat().st_size:,} bytes, {info['form']} for "
        f"{info['architectures']}, plugins {', '.join(info['ops'])}, {sizes}",
    )
    assert info["form"] == "cuda"
    assert info["architectures"].split()
    assert tuple(info["head_sizes"]) == HEAD_SIZES == (64, 80, 96, 128)
    assert tuple(info["page_sizes"]) == PAGE_SIZES == (16, 32, 64)


def test_the_library_loads_without_a_gpu_and_hands_out_a_creator_of_each_op(
    plugin_library: Path,
) -> None:
    count = ctypes.c_int32(0)
    get_creators = ctypes.CDLL(str(plugin_library)).getCreators
    get_creators.restype = ctypes.POINTER(ctypes.c_void_p)
    creators = get_creators(ctypes.byref(count))
    assert count.value == len(TORCH_OPS)
    assert all(creators[i] for i in range(count.value))


def test_only_the_entry_points_and_launchers_are_visible(plugin_library: Path) -> None:
    listed = subprocess.check_output(["nm", "-D", "--defined-only", plugin_library], text=True)
    assert {line.split()[-1] for line in listed.splitlines()} == {
        "getCreators",
        "setLoggerFinder",
        "legokv_kv_import",
        "legokv_legolink_attention",
        "legokv_legolink_attention_workspace",
        "legokv_last_error",
        "legokv_library_info",
        "legokv_list_shared",
        "legokv_scored_attention",
        "legokv_scored_attention_workspace",
    }


def test_the_library_needs_neither_tensorrt_nor_cuda_to_load(plugin_library: Path) -> None:
    listed = subprocess.check_output(["readelf", "--dynamic", plugin_library], text=True)
    needed = [line for line in listed.splitlines() if "NEEDED" in line]
    assert needed
    assert not [
        line for line in needed if "nvinfer" in line or "tensorrt" in line or "cuda" in line
    ]


def test_the_plugin_objects_keep_their_promises(plugin_test: Path) -> None:
    finished = subprocess.run([plugin_test], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr
