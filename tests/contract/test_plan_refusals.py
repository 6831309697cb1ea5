"""What no plan can have is refused in one sentence, before anything is compiled."""

from collections.abc import Callable
from pathlib import Path

import pytest
from build_command import build_engine
from quantised_checkpoints import COMPRESSED, fp8_checkpoint, packed_checkpoint

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")

RTX = ("--backend", "tensorrt-rtx")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--page-size", "24"], "no kernel for page size 24, only for 16, 32, 64"),
        (["--no-onnx"], "builds a plan from model.onnx: drop --no-onnx"),
        (["--max-sequences", "0"], "1 or more each"),
    ],
)
def test_nonsense_is_refused_in_one_sentence(
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    arguments: list[str],
    words: str,
) -> None:
    checkpoint = tiny_checkpoint("llama-wide")
    finished = build_engine(
        *RTX,
        "--plugin-library",
        plugin_library,
        "--output",
        tmp_path / "e",
        "--checkpoint",
        checkpoint,
        *arguments,
    )
    assert finished.returncode == 1
    assert words in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_a_head_size_without_a_kernel_is_refused_with_those_that_have_one(
    plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = build_engine(
        *RTX,
        "--plugin-library",
        plugin_library,
        "--output",
        tmp_path / "e",
        "--checkpoint",
        tiny_checkpoint("llama"),
    )
    assert finished.returncode == 1
    assert "no kernel for head size 16, only for 64, 80, 96, 128" in finished.stderr


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("llama", [], "no kernel for head size 16"),
        ("llama-wide", ["--page-size", "24"], "no kernel for page size 24"),
        ("llama-wide", ["--max-step-tokens", "1000000000"], "max_step_tokens is at most "),
        ("llama-wide", ["--name", "../x"], "an engine's name is one folder's"),
    ],
)
def test_what_no_plan_can_have_is_refused_before_any_plugin_is_compiled(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    arguments: list[str],
    words: str,
) -> None:
    options = [*RTX, "--output", tmp_path / "e", *arguments]
    finished = build_engine("--checkpoint", tiny_checkpoint(name), *options)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert "Compiling the plugins" not in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    finished = build_engine(
        *RTX, "--plugin-library", tmp_path / "none.so", "--output", tmp_path / "e"
    )
    assert finished.returncode == 1
    assert "none.so does not exist: run build/build_plugins.py" in finished.stderr


def test_missing_tensorrt_headers_are_refused_before_anything_is_compiled(
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    engine, checkpoint = tmp_path / "e", tiny_checkpoint("llama-wide")
    finished = build_engine(*RTX, "--checkpoint", checkpoint, "--output", engine)
    assert finished.returncode == 1
    assert f"TENSORRT_INCLUDE={tmp_path} has no NvInferRuntime.h" in finished.stderr
    assert "Compiling" not in finished.stdout
    assert not engine.exists()


@pytest.mark.parametrize("bits", ["FP8", "INT4"])
def test_a_checkpoint_in_few_bits_has_its_plan_so_unless_told(
    bits: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    plain, folder = tiny_checkpoint("llama"), tmp_path / "c"
    if bits == "INT4":
        packed_checkpoint(plain, folder)
    else:
        fp8_checkpoint(plain, folder, COMPRESSED)
    options = [*RTX, "--output", tmp_path / "e", "--checkpoint", folder]
    words = f"The checkpoint has {bits} weights, and so has its plan; --quantize none expands them"
    for told in ([], ["--quantize", "none"]):
        # Its heads have no kernel, so it ends before anything is compiled.
        finished = build_engine(*options, *told)
        assert "no kernel for head size 16" in finished.stderr
        assert (words in finished.stdout) == (told == [])
