"""The build script, run as a user runs it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from legokv.engine_folder import read_engine_folder

SCRIPT = Path(__file__).resolve().parents[2] / "build" / "build_engine.py"


def build(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def test_a_checkpoint_becomes_an_engine_once(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    options = ("--checkpoint", tiny_checkpoint("qwen3"), "--output", tmp_path / "engine")
    first = build(*options, "--dtype", "float32", "--page-size", "32", "--name", "small")
    assert first.returncode == 0, first.stderr
    assert "written" in first.stdout
    assert "Backend auto: torch" in first.stdout
    facts = read_engine_folder(tmp_path / "engine")
    assert (facts.name, facts.dtype, facts.page_size) == ("small", "float32", 32)
    assert (facts.backend, facts.model.architecture) == ("torch", "Qwen3ForCausalLM")
    assert [file.name for file in facts.produced] == ["model.onnx", "model.onnx.data"]

    second = build(*options, "--dtype", "float32", "--page-size", "32", "--name", "small")
    assert "already up to date, kept" in second.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--checkpoint", "/nowhere/at/all"], "--checkpoint /nowhere/at/all does not exist"),
        (["--checkpoint", str(SCRIPT)], "is neither a folder nor a .gguf file"),
        (["--checkpoint", str(SCRIPT.parent)], "tokenizer.json is missing"),
    ],
)
def test_what_cannot_be_built_is_one_sentence_and_exit_status_1(
    arguments: list[str], message: str, tmp_path: Path
) -> None:
    finished = build(*arguments, "--output", tmp_path / "engine")
    assert finished.returncode == 1
    assert message in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "engine").exists()


def test_a_page_of_no_tokens_is_refused(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = build(
        "--checkpoint", tiny_checkpoint("llama"), "--output", tmp_path / "e", "--page-size", "0"
    )
    assert finished.returncode == 1
    assert "a page must hold at least 1 token, not 0" in finished.stderr


def test_a_backend_that_does_not_exist_is_refused_with_those_that_do() -> None:
    finished = build("--backend", "tensorflow")
    assert finished.returncode == 2
    assert "'tensorflow'" in finished.stderr
    assert "torch" in finished.stderr
