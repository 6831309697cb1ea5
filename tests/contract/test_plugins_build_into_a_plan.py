"""TensorRT-RTX, which needs no GPU to build, makes a plan of a graph with all plugins in it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_plugin_graph import DTYPES, HEAD_SIZE, HEADS, KV_HEADS, PAGE_SIZE

tensorrt_rtx_libs = pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
SCRIPT = Path(__file__).with_name("small_plugin_graph.py")
TRT_TYPES = {"float32": "FLOAT", "float16": "HALF", "bfloat16": "BF16"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """With the name libtensorrt_rtx.so on the path, which the parser opens and the wheel lacks."""
    folder = tmp_path_factory.mktemp("rtx")
    libraries = Path(tensorrt_rtx_libs.__file__).parent
    (folder / "libtensorrt_rtx.so").symlink_to(libraries / "libtensorrt_rtx.so.1")
    return {**os.environ, "LD_LIBRARY_PATH": f"{folder}:{libraries}"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_plan_with_all_plugins_is_built_without_a_gpu(
    plugin_library: Path,
    environment: dict[str, str],
    tmp_path: Path,
    dtype: str,
    record_property: Callable[[str, object], None],
) -> None:
    plan = tmp_path / "small.plan"
    finished = subprocess.run(
        [sys.executable, SCRIPT, plugin_library, dtype, plan],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    made = json.loads(finished.stdout)
    assert made["creators"] == {
        "KvImport": ["1", []],
        "LegoLinkAttention": ["1", ["scale"]],
        "ScoredAttention": ["1", ["scale"]],
        "PackedLegoLinkAttention": ["1", ["num_heads", "scale"]],
        "PackedScoredAttention": ["1", ["num_heads", "scale"]],
    }
    assert list(made["layers"].values()) == ["LayerType.PLUGIN_V3"] * 5
    number = f"DataType.{TRT_TYPES[dtype]}"
    assert made["outputs"] == {
        "out": [number, [-1, HEADS, HEAD_SIZE]],
        "packed_attended": [number, [-1, HEADS, HEAD_SIZE]],
        "packed_out": [number, [-1, HEADS, HEAD_SIZE]],
        "pool_out": [number, [-1, 2, PAGE_SIZE, KV_HEADS, HEAD_SIZE]],
        "mass": ["DataType.FLOAT", [-1, -1, PAGE_SIZE]],
        "packed_mass": ["DataType.FLOAT", [-1, -1, PAGE_SIZE]],
    }
    names = [name.encode() for name in made["creators"]]
    serialized = plan.read_bytes()
    assert made["plan_bytes"] == len(serialized) > 0
    assert all(name in serialized for name in names)
    record_property(
        "fact",
        f"{dtype}: TensorRT-RTX's registry has {made['creators']}, its network "
        f"{made['layers']}, its plan {made['plan_bytes']:,} bytes",
    )
