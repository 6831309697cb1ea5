"""The C headers and the Python side's structures: the same fields, types and numbers in order."""

import ctypes
import re
from enum import IntEnum
from pathlib import Path

import pytest
from paths import PLUGINS

from legokv.engine.native_draw import DrawArguments, DrawRowArguments
from legokv.kernels.cpu import (
    DriftArguments,
    LayerArguments,
    PageCopyArguments,
    StepArguments,
)
from legokv.kernels.gpu import Regime
from legokv.kernels.gpu_structs import AttentionArguments, KvImportArguments, SharingArguments
from legokv.kernels.linear import GateArguments, LinearArguments, NormArguments
from legokv.kernels.native_library import InstructionSet

CPU, CUDA = PLUGINS / "cpu" / "cpu_launchers.h", PLUGINS / "include" / "legokv" / "launchers.h"
TYPES = {
    "int64_t": ctypes.c_int64,
    "int32_t": ctypes.c_int32,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
}


def code_of(header: Path) -> str:
    return re.sub(r"//.*", "", header.read_text())


def fields_of(header: Path, name: str) -> list[tuple[str, type]]:
    (body,) = re.findall(rf"struct {name} \{{(.*?)\}};", code_of(header), re.DOTALL)
    found = re.findall(r"^\s*(?:const )?(?:struct )?(\w+)(\*?) (\w+);", body, re.MULTILINE)
    assert len(found) == body.count(";"), "a member is declared in a way this test cannot read"
    return [(field, ctypes.c_void_p if star else TYPES[kind]) for kind, star, field in found]


@pytest.mark.parametrize(
    ("header", "name", "structure"),
    [
        (CPU, "LegokvCpuStep", StepArguments),
        (CPU, "LegokvCpuLayer", LayerArguments),
        (CPU, "LegokvCpuPageCopy", PageCopyArguments),
        (CPU, "LegokvCpuDrift", DriftArguments),
        (CPU, "LegokvCpuLinear", LinearArguments),
        (CPU, "LegokvCpuGate", GateArguments),
        (CPU, "LegokvCpuNorm", NormArguments),
        (CPU, "LegokvCpuDraw", DrawArguments),
        (CPU, "LegokvCpuDrawRow", DrawRowArguments),
        (CUDA, "LegokvKvImport", KvImportArguments),
        (CUDA, "LegokvLegolinkAttention", AttentionArguments),
        (CUDA, "LegokvSharing", SharingArguments),
    ],
)
def test_a_structure_has_the_header_s_fields_of_its_types(
    header: Path, name: str, structure: type[ctypes.Structure]
) -> None:
    assert list(structure._fields_) == fields_of(header, name)


@pytest.mark.parametrize(
    ("header", "name", "numbers"),
    [
        (CPU, "LegokvInstructionSet", InstructionSet),
        (CUDA, "LegokvRegime", Regime),
    ],
)
def test_a_choice_has_the_header_s_numbers(header: Path, name: str, numbers: type[IntEnum]) -> None:
    (body,) = re.findall(rf"enum {name} \{{(.*?)\}};", code_of(header), re.DOTALL)
    found = re.findall(r"LEGOKV_(\w+) = (\d+)", body)
    assert found == [(each.name, str(each.value)) for each in numbers]
