"""The build script: as a user runs it where that matters, else in this process."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from build_command import build_engine
from paths import ROOT

from legokv.build.engine import BuildSettings
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PlanLimits
from legokv.errors import InvalidRequest
from legokv.plan.backends import this_machine

SCRIPT = ROOT / "build" / "build_engine.py"
TORCH = ("--backend", "torch")
OF_NO_PLAN = " is of a plan, and backend torch builds none"


def run_script(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_checkpoint_becomes_an_engine_once(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ("--checkpoint", tiny_checkpoint("qwen3"), "--output", tmp_path / "engine")
    first = run_script(*options, "--dtype", "float32", "--page-size", "32", "--name", "small")
    assert first.returncode == 0, first.stderr
    assert "written" in first.stdout
    assert "Backend auto: torch" in first.stdout
    facts = read_engine_folder(tmp_path / "engine")
    assert (facts.name, facts.dtype, facts.page_size) == ("small", "float32", 32)
    assert (facts.backend, facts.model.architecture) == ("torch", "Qwen3ForCausalLM")
    assert [file.name for file in facts.produced] == ["model.onnx", "model.onnx.data"]
    assert facts.gate is not None
    for number in (facts.gate.kl_link_0, facts.gate.kl_link_16):
        assert f"{number:.4g}" in first.stdout

    second = build_engine(*options, "--dtype", "float32", "--page-size", "32", "--name", "small")
    assert "already up to date, kept" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "/nowhere/at/all"], "--checkpoint /nowhere/at/all does not exist"),
        (["--checkpoint", str(SCRIPT)], "is neither a folder nor a .gguf file"),
        (["--checkpoint", str(SCRIPT.parent)], "tokenizer.json is missing"),
        ([*TORCH, "--quantize", "fp8"], "or --weights int8 or int4, which CPUs"),
        ([*TORCH, "--quantize", "int4"], "--quantize int4 is of a plan, and backend"),
        (["--weights", "int8", "--quantize", "int4"], "for a plan: leave out one of them"),
        # Where there is no GPU.
        (["--backend", "auto", "--quantize", "fp8"], "of a plan, and backend torch builds none"),
        (["--max-step-tokens", "1", *TORCH], f"--max-step-tokens{OF_NO_PLAN}"),
        (["--max-sequences", "1", *TORCH], f"--max-sequences{OF_NO_PLAN}"),
        (["--plugin-library", "1", *TORCH], f"--plugin-library{OF_NO_PLAN}"),
        (["--import", "plugin", *TORCH], f"--import{OF_NO_PLAN}"),
        (["--weight-streaming", *TORCH], f"--weight-streaming{OF_NO_PLAN}"),
        (["--refit", *TORCH], f"--refit{OF_NO_PLAN}"),
        (["--weights", "int3"], "weights 'int3' are none of model, int8, int4"),
    ],
)
def test_what_cannot_be_built_is_one_sentence_and_exit_status_1(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    finished = build_engine(*arguments, "--output", tmp_path / "engine")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "engine").exists()


def test_a_page_of_no_tokens_is_refused(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = build_engine(
        "--checkpoint", tiny_checkpoint("llama"), "--output", tmp_path / "e", "--page-size", "0"
    )
    assert finished.returncode == 1
    assert "a page must hold at least 1 token, not 0" in finished.stderr


def test_a_backend_that_does_not_exist_is_refused_with_those_that_do() -> None:
    finished = build_engine("--backend", "tensorflow")
    assert finished.returncode == 2
    assert "'tensorflow'" in finished.stderr
    assert "torch" in finished.stderr


@pytest.mark.skipif("tensorrt" in this_machine().installed, reason="TensorRT is installed")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weights int4", "weights 'int4' are for CPUs, and backend tensorrt builds a plan"),
        ("--weights int5", "weights 'int5' are none of model, int8, int4"),
        ("--page-size 0", "a page must hold at least 1 token, not 0"),
        ("--no-onnx", "--backend tensorrt builds a plan from model.onnx: drop --no-onnx"),
        ("--plugin-library none.so", "--plugin-library none.so does not exist"),
    ],
)
def test_what_goes_together_nowhere_is_said_before_what_is_not_installed_here(
    options: str, message: str, tmp_path: Path
) -> None:
    output = ["--output", tmp_path / "e"]
    finished = build_engine("--backend", "tensorrt", *options.split(), *output)
    assert finished.returncode == 1
    assert message in finished.stderr
    assert finished.stdout == ""
    plain = build_engine("--backend", "tensorrt", *output)
    assert "tensorrt is not installed: pip install tensorrt" in plain.stderr


def test_weights_are_not_streamed_by_tensorrt_llm() -> None:
    with pytest.raises(InvalidRequest, match="without --weight-streaming, or with another"):
        BuildSettings("tiny", backend="tensorrt-llm", flags=("weight_streaming",))
    BuildSettings("tiny", backend="tensorrt", flags=("weight_streaming",))


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/b", "..", ""])
def test_a_name_that_is_a_path_is_refused_before_anything_is_read(
    name: str, tmp_path: Path
) -> None:
    finished = build_engine("--name", name, "--checkpoint", tmp_path / "nowhere")
    assert finished.returncode == 1
    assert f"an engine's name is one folder's, without a path: '{name}'" in finished.stderr
    assert finished.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_while_torch_is_loaded_is_one_line_and_status_130(
    number: signal.Signals, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, str(SCRIPT), "--output", str(tmp_path / "e")],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        maps, deadline = Path(f"/proc/{process.pid}/maps"), time.monotonic() + 60
        while "libtorch" not in maps.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read() == "build_engine.py: interrupted\n"
        assert process.wait(timeout=60) == 130
    assert not (tmp_path / "e").exists()


def test_an_engine_without_a_name_has_its_checkpoints_dots_and_all(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tmp_path / "Llama-3.2-1B"
    checkpoint.symlink_to(tiny_checkpoint("llama"))
    finished = build_engine("--checkpoint", checkpoint, "--output", tmp_path / "e", "--no-onnx")
    assert finished.returncode == 0, finished.stderr
    assert read_engine_folder(tmp_path / "e").name == "Llama-3.2-1B"


def test_a_path_that_is_no_text_is_refused_with_what_to_set() -> None:
    command = [sys.executable, str(SCRIPT), "--output", b"/tmp/\xff\xfe", "--backend", "torch"]
    finished = subprocess.run(command, check=False, capture_output=True, text=True)
    assert finished.returncode == 1
    assert (
        r"--output '/tmp/\udcff\udcfe' can't be read as utf-8: set PYTHONUTF8=1" in finished.stderr
    )


def test_every_limit_of_a_plan_has_an_option() -> None:
    finished = build_engine("--help")
    for limit in fields(PlanLimits):
        assert f"--{limit.name.replace('_', '-')} N" in finished.stdout
