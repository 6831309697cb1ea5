"""The CPU library's header and the Python side's structures: the same fields in the same order."""

import ctypes
import re
from pathlib import Path

import pytest

from legokv.native_calls import InstructionSet, LayerArguments, StepArguments

HEADER = Path(__file__).resolve().parents[2] / "plugins" / "cpu" / "cpu_launchers.h"
TYPES = {"int64_t": ctypes.c_int64, "int32_t": ctypes.c_int32, "float": ctypes.c_float}


def fields_of(name: str) -> list[tuple[str, type]]:
    (body,) = re.findall(rf"struct {name} \{{(.*?)\}};", HEADER.read_text(), re.DOTALL)
    found = re.findall(r"^\s*(?:const )?(\w+)(\*?) (\w+);", body, re.MULTILINE)
    return [(field, ctypes.c_void_p if star else TYPES[kind]) for kind, star, field in found]


@pytest.mark.parametrize(
    ("name", "structure"), [("LegokvCpuStep", StepArguments), ("LegokvCpuLayer", LayerArguments)]
)
def test_a_structure_has_the_header_s_fields(name, structure):
    assert list(structure._fields_) == fields_of(name)


def test_instruction_sets_have_the_header_s_numbers():
    numbers = re.findall(r"LEGOKV_(\w+) = (\d)", HEADER.read_text())
    assert numbers == [(each.name, str(each.value)) for each in InstructionSet]
