"""What nvcc makes of the kernels is what build/sass.json has: a change that spills is seen."""

import json
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from legokv.errors import ToolchainMissing
from legokv.kernels.toolchain import find_nvcc, sass_tools

TABLE = ROOT / "build" / "sass.json"


@pytest.fixture
def sass(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "build")
    import sass

    return sass


@pytest.fixture
def tools() -> Path | None:
    """cuobjdump's folder; a skip where there is neither nvcc of the table's release nor this."""
    nvcc, release = find_nvcc(), json.loads(TABLE.read_text())["nvcc"]
    if nvcc is None:
        pytest.skip("no nvcc of the machine's own: build/sass.py fetches one")
    said = subprocess.check_output([nvcc, "--version"], text=True)
    if release not in said:
        pytest.skip(f"the table is of nvcc {release}, here is {said.split()[-1]}")
    try:
        return sass_tools(ROOT / "out" / "cuda-sass", print)
    except ToolchainMissing as error:
        pytest.skip(str(error))


def test_registers_spills_and_loops_are_those_of_the_table(
    sass: ModuleType, plugin_library: Path, tools: Path | None
) -> None:
    made = sass.kernels_of(plugin_library, tools)
    assert list(made) == ["sm_80"]
    assert sass.changes(made, json.loads(TABLE.read_text())) == []


# Of the stack 32 bytes are for the slow path of a sine; one form keeps 8 more there.
STACK_BYTES = {
    "attend_reference": 32,
    "attend_shared": 0,
    "attend_split": 32,
    "attend_tiled": 0,
    "combine_splits": 0,
    "kv_import": 0,
    "norm_rows": 32,
    "sum_weights": 32,
    "write_kv": 32,
}
LOCAL_IN_LOOP = {"attend_reference": 10, "attend_split": 5, "norm_rows": 10, "sum_weights": 10}
LOCAL_IN_LOOP |= {"write_kv": 1}
MORE_ON_STACK = {"sm_80": ["attend_split f32 128 8"], "sm_90": ["attend_split f32 128 8"]}


def test_stacks_of_the_table_and_what_its_loops_read_there_are_the_known_ones() -> None:
    table = json.loads(TABLE.read_text())
    for architecture in ("sm_80", "sm_90"):
        for name, kernel in table[architecture].items():
            kind, more = name.split()[0], name in MORE_ON_STACK[architecture]
            assert kernel["stack_bytes"] == STACK_BYTES[kind] + 8 * more, name
            local = (kernel["loop"] or {}).get("local", 0)
            assert local <= LOCAL_IN_LOOP.get(kind, 0), name


def test_16_bit_rows_are_multiplied_on_tensor_cores_few_or_many() -> None:
    """A strip of 16 keys with 8 rows, and four of them, or two, with 32 rows."""
    table = json.loads(TABLE.read_text())
    for kernels in (table["sm_80"], table["sm_90"]):
        products = {name: kernel["loop"].get("tensor", 0) for name, kernel in kernels.items()}
        for head_size in (64, 80, 96, 128):
            assert products[f"attend_split bf16 {head_size} 8"] == head_size // 8
            for kind in ("attend_tiled", "attend_shared"):
                assert products[f"{kind} bf16 {head_size}"] == head_size * (
                    1 if head_size > 80 else 2
                )
            assert products[f"attend_split f32 {head_size} 8"] == 0


LISTING = """
\t\tFunction : _ZN6legokv4x19attend_tiled_kernelINS_8bfloat16ELi128EEEvNS_13AttentionCallE
        /*0000*/                   IMAD.MOV.U32 R1, RZ, RZ, c[0x0][0x28] ;     /* 0x00000a */
        /*0010*/                   HMMA.16816.F32 R4, R8, R2, R4 ;             /* 0x00000b */
        /*0020*/              @!P0 LDSM.16.M88.4 R8, [R2] ;                    /* 0x00000c */
        /*0030*/               @P1 BRA 0x10 ;                                  /* 0x00000d */
        /*0040*/                   EXIT ;                                      /* 0x00000e */
""".splitlines()


# The compiler put a part of the loop behind what comes after it; parted lanes never come back here.
MOVED = """
        /*0000*/                   HMMA.16816.F32 R4, R8, R2, R4 ;             /* 0x00000a */
        /*0010*/              @!P0 BRA 0x40 ;                                  /* 0x00000b */
        /*0020*/                   BRA.DIV UR4, 0x60 ;                         /* 0x00000c */
        /*0030*/                   EXIT ;                                      /* 0x00000d */
        /*0040*/                   LDSM.16.M88.4 R8, [R2] ;                    /* 0x00000e */
        /*0050*/                   BRA 0x0 ;                                   /* 0x00000f */
        /*0060*/                   SHFL.BFLY PT, R2, R2, 0x1, 0x1f ;           /* 0x00000a */
        /*0070*/                   BRA 0x30 ;                                  /* 0x00000b */
""".splitlines()


def instructions(sass: ModuleType, listing: list[str]) -> list[object]:
    return [sass.Instruction(found) for found in map(sass.INSTRUCTION.search, listing) if found]


def test_a_loop_is_all_that_a_branch_goes_back_over_wherever_it_lies(sass: ModuleType) -> None:
    ((symbol, body),) = sass._functions(LISTING)
    assert sass.short_name(symbol) == "attend_tiled bf16 128"
    kernel = sass._kernel("sm_90", "attend_tiled bf16 128", (200, 0), body)
    assert (kernel.instructions, kernel.blocks, kernel.shared_bytes) == (5, 2, 73984)
    assert kernel.loop == {"control": 1, "matrix load": 1, "tensor": 1}
    assert [each.address for each in sass.inner_loop(instructions(sass, MOVED))] == [
        0x0, 0x10, 0x40, 0x50
    ]  # fmt: skip
    assert sass.short_name("_ZN1x16kv_import_kernelINS_8bfloat16ES2_EEv14LegokvKvImport") == (
        "kv_import bf16 bf16"
    )
    shared = "_ZN1x21combine_splits_kernelINS_8bfloat16ELb1EEEvNS_13AttentionCallE"
    assert sass.short_name(shared) == "combine_splits bf16 shared"
    assert sass.short_name(shared.replace("Lb1E", "Lb0E")) == "combine_splits bf16"
    assert sass.short_name("_ZN1x9combine_splits_kernelINS_7float16EEEvE") is None
