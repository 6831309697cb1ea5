"""Builds of plans that are interrupted, killed or fail: their words, and what they leave."""

import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from plan_builds import PLAN, command
from processes import has_ended, only_child, soon

from legokv.build.engine import BuildSettings, build_engine_folder, facts_from_checkpoint
from legokv.built.plan_limits import PlanLimits, plan_profiles
from legokv.errors import PlanBuildFailed
from legokv.plan import process as plan_process
from legokv.plan.process import build_plan
from legokv.plan.request import PlanFiles, plan_request
from legokv.step.graph import graph_shape

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
Built = Callable[..., tuple[Path, str]]


@contextmanager
def under_way(arguments: list[str]) -> Iterator[tuple["subprocess.Popen[str]", int]]:
    """A build that has begun its plan, and the number of the process that builds it."""
    with subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Tests that were started in the background hand down a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        assert any(line.startswith(f"Building {PLAN}") for line in process.stdout)
        yield process, only_child(process.pid)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_build_ends_at_once_and_leaves_nothing(
    number: signal.Signals,
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    engine, checkpoint = tmp_path / "engine", tiny_checkpoint("llama-wide")
    given = command(plugin_library, engine, "--checkpoint", checkpoint)
    with under_way(given) as (process, child):
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        assert process.stderr.read() == "build_engine.py: interrupted\n"
        assert soon(lambda: has_ended(child))
    assert list(tmp_path.iterdir()) == []


def test_a_killed_build_takes_its_process_along_and_the_next_build_what_it_left(
    plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    engine, checkpoint = tmp_path / "engine", tiny_checkpoint("llama-wide")
    with under_way(command(plugin_library, engine, "--checkpoint", checkpoint)) as (process, child):
        process.kill()
        soon(lambda: has_ended(child))
    assert len(list(tmp_path.iterdir())) == 1
    build_engine_folder(checkpoint, engine, BuildSettings("tiny"))
    assert list(tmp_path.iterdir()) == [engine]


def try_to_build(checkpoint: Path, library: Path, folder: Path) -> None:
    facts = facts_from_checkpoint(checkpoint, BuildSettings("tiny"))
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size, "plugin")
    files = PlanFiles(folder / "model.onnx", folder / PLAN, library)
    profiles = plan_profiles(facts.model, graph, PlanLimits())
    build_plan(plan_request("tensorrt-rtx", graph, profiles, files), print)


def test_a_model_that_does_not_parse_is_reported_in_tensorrts_words(
    plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(PlanBuildFailed, match=r"(?s)model\.onnx could not be parsed: .+"):
        try_to_build(tiny_checkpoint("llama-wide"), plugin_library, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


def test_a_library_without_plugins_is_reported(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "empty.so").write_bytes(b"")
    with pytest.raises(PlanBuildFailed, match=r"empty\.so gave TensorRT no plugins"):
        try_to_build(tiny_checkpoint("llama-wide"), tmp_path / "empty.so", tmp_path)


def test_a_build_process_that_aborts_is_an_error_with_its_last_words(
    built: Built,
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Without the link TensorRT-RTX's parser calls std::terminate at the first plugin.
    def no_link(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
        return dict(environment)

    for name in ("model.onnx", "model.onnx.data"):
        (tmp_path / name).symlink_to(built()[0] / name)
    monkeypatch.setattr(plan_process, "environment_with_library", no_link)
    with pytest.raises(PlanBuildFailed, match=r"(?s)ended by SIGABRT.*terminate called"):
        try_to_build(tiny_checkpoint("llama-wide"), plugin_library, tmp_path)
    assert not (tmp_path / PLAN).exists()
