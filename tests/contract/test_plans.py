"""Real TensorRT-RTX plans, built without a GPU by the build script, read back in its own words."""

import hashlib
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from legokv import engine_kept
from legokv.bindings import graph_shape
from legokv.compile import plan_process
from legokv.compile.plan_process import build_plan
from legokv.compile.plan_request import PlanBuildFailed, PlanFiles, plan_request
from legokv.engine_build import (
    BuildSettings,
    build_engine_folder,
    facts_from_checkpoint,
    with_plan,
)
from legokv.engine_folder import read_engine_folder
from legokv.engine_kept import kept_plan
from legokv.profiles import PlanLimits, plan_profiles
from legokv.runners import open_runner

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
SCRIPT = Path(__file__).resolve().parents[2] / "build" / "build_engine.py"
PLAN = "tensorrt-rtx.plan"
SUMMARY = re.compile(
    r"tensorrt-rtx \S+: (\d+) layers, of them (\d+) KvImport, (\d+) LegoLinkAttention; "
    r"(\d+) profiles; (\S+) MiB"
)


def command(library: Path, output: Path, *arguments: str | Path) -> list[str]:
    options = ["--backend", "tensorrt-rtx", "--plugin-library", library, "--output", output]
    return [sys.executable, str(SCRIPT), *map(str, [*options, *arguments])]


def build(library: Path, output: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    given = command(library, output, *arguments)
    return subprocess.run(given, check=False, capture_output=True, text=True)


def summary_of(output: str) -> re.Match[str]:
    """The line in which a build says what the built network has."""
    found = SUMMARY.search(output)
    assert found is not None, output
    return found


def named_in(plan: bytes) -> dict[str, int]:
    """How often a plan's own bytes name each plugin: once or more for each of its layers."""
    return {name: plan.count(name.encode()) for name in ("KvImport", "LegoLinkAttention")}


Record = Callable[[str, object], None]
Built = Callable[..., tuple[Path, str]]


@pytest.fixture(scope="module")
def built(
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """A tiny checkpoint's engine folder with its plan, and what was said meanwhile; made once."""
    made: dict[tuple[str, str], tuple[Path, str]] = {}

    def engine(name: str = "llama-wide", dtype: str = "bfloat16") -> tuple[Path, str]:
        if (name, dtype) not in made:
            said: list[str] = []
            output = tmp_path_factory.mktemp("plans") / f"{name}-{dtype}"
            settings = settings_of(name, plugin_library, dtype)
            build_engine_folder(tiny_checkpoint(name), output, settings, say=said.append)
            made[name, dtype] = output, "\n".join(said)
        return made[name, dtype]

    return engine


def settings_of(
    name: str, library: Path, dtype: str = "bfloat16", max_sequences: int = 5
) -> BuildSettings:
    limits = PlanLimits(max_step_tokens=256, max_sequences=max_sequences, max_import_pages=8)
    return BuildSettings(
        name, dtype, backend="tensorrt-rtx", plugin_library=lambda: library, limits=limits
    )


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama-wide", "bfloat16"),
        ("llama-wide", "float16"),
        ("llama-wide", "float32"),
        ("qwen3-wide", "bfloat16"),
    ],
)
def test_a_tiny_model_becomes_a_plan_with_both_plugins_in_every_layer(
    built: Built, name: str, dtype: str, record_property: Record
) -> None:
    output, said = built(name, dtype)
    summary = summary_of(said)
    num_layers, *plugins_and_profiles = map(int, summary.groups()[:4])
    assert plugins_and_profiles == [3, 3, 2]
    assert num_layers > 100
    content = (output / PLAN).read_bytes()
    assert summary[5] == f"{len(content) / 2**20:.1f}"
    assert all(count >= 3 for count in named_in(content).values())
    size = f"a file of {len(content):,} bytes that names {named_in(content)}"
    record_property("fact", f"{name}, {dtype}: {summary[0]}, {size}")


def test_engine_json_records_the_plan_and_what_it_depends_on(
    built: Built, plugin_library: Path
) -> None:
    output, _ = built()
    facts = read_engine_folder(output)
    plan = facts.plan
    assert plan is not None
    assert (facts.backend, plan.flavour, plan.architecture) == ("tensorrt-rtx",) * 2 + ("any",)
    assert plan.library_sha256 == hashlib.sha256(plugin_library.read_bytes()).hexdigest()
    assert (output / plan.library_file).read_bytes() == plugin_library.read_bytes()
    assert [profile.name for profile in plan.profiles] == ["prefill", "decode"]
    assert [profile.ranges["B"].most for profile in plan.profiles] == [5, 5]
    assert {file.name: file.size_bytes for file in facts.produced} == {
        name: (output / name).stat().st_size
        for name in ("model.onnx", "model.onnx.data", PLAN, plan.library_file)
    }


def test_a_plan_of_other_limits_is_another_and_one_of_the_same_is_kept(
    built: Built, plugin_library: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    output, _ = built()
    checkpoint = tiny_checkpoint("llama-wide")
    same, other = (settings_of("llama-wide", plugin_library, max_sequences=n) for n in (5, 6))
    assert not build_engine_folder(checkpoint, output, same)
    facts = facts_from_checkpoint(checkpoint, same)
    plans = [with_plan(facts, settings, plugin_library).plan for settings in (same, other)]
    assert plans[0] == read_engine_folder(output).plan
    assert plans[1] != plans[0]


def test_auto_keeps_a_plan_that_is_there_and_torch_by_name_replaces_it_and_says_so(
    built: Built, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("llama-wide")
    engine = Path(shutil.copytree(built()[0], tmp_path / "engine"))
    before = (engine / "engine.json").read_bytes()
    said: list[str] = []
    auto = BuildSettings("llama-wide", exports_onnx=True, any_plan=True)
    assert not build_engine_folder(checkpoint, engine, auto, say=said.append)
    assert (engine / "engine.json").read_bytes() == before
    assert f"{engine} has {PLAN} (tensorrt-rtx " in said[0]
    assert "auto keeps: a --backend by name, or --force, replaces it" in said[0]

    other = replace(auto, page_size=32)
    assert build_engine_folder(checkpoint, engine, other, say=said.append)
    assert f"Replacing {engine}: backend tensorrt-rtx becomes torch; page size 16" in said[1]

    again = Path(shutil.copytree(built()[0], tmp_path / "again"))
    torch = replace(auto, any_plan=False)
    assert build_engine_folder(checkpoint, again, torch, say=said.append)
    assert any(f"Replacing {again}: backend tensorrt-rtx becomes torch; plan {PLAN}" in line
               for line in said)  # fmt: skip
    assert not (again / PLAN).exists()


def test_with_a_gpu_auto_keeps_a_plan_only_if_it_runs_there_and_has_the_limits(
    built: Built,
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output, _ = built()
    asked = settings_of("llama-wide", plugin_library)
    facts = facts_from_checkpoint(tiny_checkpoint("llama-wide"), asked)
    keep = partial(kept_plan, output, facts, [PLAN], keep_failed=False)
    assert keep(asked.limits)
    assert keep(replace(asked.limits, max_sequences=6)) is None
    for module in (engine_kept, open_runner):
        monkeypatch.setattr(module, "gpu_architecture", lambda: "sm_90")
    assert keep(asked.limits)
    monkeypatch.setattr(open_runner, "backend_version", lambda name: "0.0")
    assert keep(asked.limits) is None


def test_smollm2_becomes_a_plan(
    plugin_library: Path, smollm2_engine_folder: Path, tmp_path: Path, record_property: Record
) -> None:
    facts = read_engine_folder(smollm2_engine_folder)
    graph = graph_shape(facts.model, facts.dtype, facts.page_size)
    model, plan = smollm2_engine_folder / "model.onnx", tmp_path / PLAN
    profiles = plan_profiles(facts.model, graph, PlanLimits())
    files = PlanFiles(model, plan, plugin_library)
    said: list[str] = []
    summary = build_plan(plan_request("tensorrt-rtx", graph, profiles, files), said.append)
    progress = [line for line in said if re.fullmatch(r"  .+: \d+ of \d+", line)]
    weight_bytes = model.with_name("model.onnx.data").stat().st_size
    record_property("fact", f"SmolLM2: model.onnx.data of {weight_bytes:,} bytes; {summary}")
    assert summary.plugins == {"KvImport": 30, "LegoLinkAttention": 30}
    assert summary.num_layers > 1000
    assert summary.num_profiles == 2
    assert progress, f"a build of seconds said nothing of how far it was: {said}"
    assert all(count >= 30 for count in named_in(plan.read_bytes()).values())
    # 134.5 million parameters of two bytes, the tied embedding once.
    assert 269e6 < weight_bytes < 270e6
    assert 269e6 < plan.stat().st_size == summary.plan_bytes < 400e6


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


def only_child(pid: int) -> int:
    """The process that `pid` started, as soon as it has."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return int(soon(lambda: children.read_text().split())[0])


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; its starter may not have looked at how it ended."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def soon(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true, within a minute."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


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
        assert process.stderr.read() == "build_engine.py: interrupted, nothing written\n"
        assert has_ended(child)
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
    finished = build(plugin_library, tmp_path / "e", "--checkpoint", checkpoint, *arguments)
    assert finished.returncode == 1
    assert words in finished.stderr
    assert finished.stderr.count("\n") == 1
    assert not (tmp_path / "e").exists()


def test_a_head_size_without_a_kernel_is_refused_with_those_that_have_one(
    plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    finished = build(plugin_library, tmp_path / "e", "--checkpoint", tiny_checkpoint("llama"))
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
    options = ["--backend", "tensorrt-rtx", "--output", str(tmp_path / "e"), *arguments]
    finished = subprocess.run(
        [sys.executable, str(SCRIPT), "--checkpoint", str(tiny_checkpoint(name)), *options],
        check=False,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 1
    assert words in finished.stderr
    assert "Compiling the plugins" not in finished.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_plugin_library_that_is_not_there_is_refused(tmp_path: Path) -> None:
    finished = build(tmp_path / "none.so", tmp_path / "e")
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
    options = ("--backend", "tensorrt-rtx", "--checkpoint", checkpoint, "--output", engine)
    finished = subprocess.run(
        [sys.executable, SCRIPT, *options], check=False, capture_output=True, text=True
    )
    assert finished.returncode == 1
    assert f"TENSORRT_INCLUDE={tmp_path} has no NvInferRuntime.h" in finished.stderr
    assert "Compiling" not in finished.stdout
    assert not engine.exists()


def try_to_build(checkpoint: Path, library: Path, folder: Path) -> None:
    facts = facts_from_checkpoint(checkpoint, BuildSettings("tiny"))
    graph = graph_shape(facts.model, facts.dtype, facts.page_size)
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
