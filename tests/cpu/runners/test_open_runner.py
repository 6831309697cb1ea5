"""Which runner an engine gets here, and what one is told that this machine can't run."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_session import plan_of

from legokv.built.folder import EngineFacts, read_engine_folder
from legokv.built.settings import EngineSettings
from legokv.engine.engine import Engine
from legokv.errors import EngineMismatch, InvalidRequest
from legokv.ops.kv_import import import_stored
from legokv.runners import opening
from legokv.runners.eager import EagerRunner
from legokv.runners.opening import check_machine, open_runner

SETTINGS = EngineSettings(attention="torch", pool_tokens=64, max_step_tokens=64)


@pytest.fixture
def folder(tiny_engine_folder: Callable[[str], Path]) -> Path:
    return tiny_engine_folder("llama")


@pytest.fixture
def planned(folder: Path) -> EngineFacts:
    """The engine's facts as if it had a plan; no file of it exists."""
    plan = replace(plan_of(folder, "float32"), flavour="tensorrt-rtx")
    return replace(read_engine_folder(folder), plan=plan)


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "gpu_architecture", lambda *number: None)


@pytest.mark.usefixtures("no_gpu")
def test_without_a_gpu_auto_is_torch_and_says_so(
    folder: Path, planned: EngineFacts, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "legokv"):
        runner = open_runner(folder, planned, SETTINGS)
    assert isinstance(runner, EagerRunner)
    assert (runner.attention.description, runner.device.type) == ("torch", "cpu")
    assert "runner: torch, since torch sees no NVIDIA GPU" in caplog.text


@pytest.mark.parametrize(
    ("plan", "library", "chosen"),
    [(True, None, "plan"), (False, Path("plugins.so"), "cuda"), (False, None, "torch")],
)
def test_on_a_gpu_auto_is_the_plan_then_the_kernels_then_torch(
    planned: EngineFacts,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    plan: bool,
    library: Path | None,
    chosen: str,
) -> None:
    monkeypatch.setattr(opening, "gpu_architecture", lambda *number: "sm_90")
    monkeypatch.setattr(opening, "_library", lambda folder: library)
    facts = planned if plan else replace(planned, plan=None)
    found, reason = opening._choice(folder, facts, "auto")
    assert found == chosen
    assert "sm_90" in reason or "build/build_plugins.py" in reason


def test_on_a_gpu_auto_goes_on_without_a_plan_that_does_not_open_and_says_why(
    planned: EngineFacts,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*arguments: object) -> None:
        raise EngineMismatch("TensorRT could not open the plan: sm_90 is not supported")

    monkeypatch.setattr(opening, "gpu_architecture", lambda *number: "sm_90")
    monkeypatch.setattr(opening, "_library", lambda folder: None)
    monkeypatch.setattr(opening, "_plan_runner", refused)
    with caplog.at_level(logging.INFO, "legokv"):
        assert isinstance(open_runner(folder, planned, SETTINGS), EagerRunner)
    assert "the plan does not open here: TensorRT could not open the plan: sm_90" in caplog.text
    assert "runner: torch, since the plugins for the GPU are not compiled" in caplog.text
    monkeypatch.setattr(opening, "_library", lambda folder: Path("plugins.so"))
    assert opening._choice(folder, replace(planned, plan=None), "auto")[0] == "cuda"
    with pytest.raises(EngineMismatch, match="sm_90 is not supported"):
        open_runner(folder, planned, replace(SETTINGS, runner="plan"))


def test_a_plan_that_imports_by_its_nodes_leaves_its_library_alone(
    planned: EngineFacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be of older code, and take other arguments, as attention's may for a "stream"."""
    opened = []
    monkeypatch.setattr(opening, "Launchers", lambda *of: opened.append(of))
    assert planned.plan is not None
    assert opening._plan_import(tmp_path, replace(planned.plan, imports="plugin")) is import_stored
    assert opened == []
    opening._plan_import(tmp_path, replace(planned.plan, imports="stream"))
    assert opened == [(tmp_path / planned.plan.library_file, ("LegokvKvImport",))]


def test_a_plan_s_pool_has_its_memory_before_weights_get_what_is_left(
    planned: EngineFacts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    monkeypatch.setattr(opening, "check_machine", lambda *of: None)
    monkeypatch.setattr(opening, "_gpu", lambda settings: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(opening, "PageStore", lambda *of, **named: order.append("pool"))
    monkeypatch.setattr(opening, "open_plan", lambda *of: order.append("plan"))
    monkeypatch.setattr(opening, "TensorRTRunner", lambda *of: of)
    monkeypatch.setattr(opening, "DeviceGuard", lambda runner: runner)
    open_runner(folder, planned, replace(SETTINGS, runner="plan"))
    assert order == ["pool", "plan"]


def test_an_unknown_runner_is_refused_with_those_there_are(folder: Path) -> None:
    with pytest.raises(InvalidRequest, match="one of auto, torch, cuda, plan, not 'gpu'"):
        Engine.open(folder, settings=EngineSettings(runner="gpu"))


def test_a_plan_that_is_not_there_is_refused_with_what_to_do(folder: Path) -> None:
    with pytest.raises(EngineMismatch, match="has no plan, it was built for torch"):
        Engine.open(folder, settings=EngineSettings(runner="plan"))


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("cuda", "words"),
    [
        (None, r"torch \S+ here is built without CUDA: `make cuda-torch` installs it"),
        ("13.0", r"torch \S+ sees none here: check the driver"),
    ],
)
def test_cuda_without_a_gpu_is_refused_with_why_there_is_none(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cuda: str | None, words: str
) -> None:
    monkeypatch.setattr("torch.version.cuda", cuda)
    with pytest.raises(EngineMismatch, match=f"needs an NVIDIA GPU, {words}") as refused:
        Engine.open(folder, settings=EngineSettings(runner="cuda"))
    assert "build_plugins" not in str(refused.value)


def test_cuda_on_a_gpu_without_the_compiled_plugins_says_what_compiles_them(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "gpu_architecture", lambda *number: "sm_90")
    monkeypatch.setattr(opening, "BUILT_LIBRARY", tmp_path / "none.so")
    with pytest.raises(EngineMismatch, match=r"none\.so is there: run build/build_plugins\.py"):
        Engine.open(folder, settings=EngineSettings(runner="cuda"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dtype": "bfloat16"}, "the plan is float32, dtype bfloat16 was asked for"),
        ({"max_step_tokens": 65}, "holds 64 tokens in a step, 65 were asked for"),
        ({"pool_tokens": 16 * 10**8}, "pages in the pool, 100000000 were asked for"),
    ],
)
def test_settings_a_plan_does_not_hold_are_refused_with_the_numbers(
    folder: Path, planned: EngineFacts, change: dict[str, object], words: str
) -> None:
    settings = replace(SETTINGS, runner="plan", **change)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=words):
        open_runner(folder, planned, settings)


def test_a_plan_of_a_runtime_that_is_not_here_names_it(planned: EngineFacts) -> None:
    assert planned.plan is not None
    missing = replace(planned.plan, flavour="tensorrt-llm", version="10.14.1")
    with pytest.raises(EngineMismatch, match=r"built by tensorrt-llm 10\.14\.1, which is not"):
        check_machine(Path("nowhere"), missing)


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_of_another_version_or_library_names_both_sides(
    planned: EngineFacts, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    assert planned.plan is not None
    library = tmp_path / planned.plan.library_file
    library.write_bytes(b"plugins")
    digest = "adb68522d6b3cff4bdf3b45af21a57e43b8a6ca4e4ee4bc82ebf0a6a8b3a7b62"
    plan = replace(planned.plan, version=rtx.__version__, library_sha256=digest)
    with pytest.raises(EngineMismatch, match=f"version 0.9, here it is {rtx.__version__}"):
        check_machine(tmp_path, replace(plan, version="0.9"))
    with pytest.raises(EngineMismatch, match=f"SHA-256 {digest}, here it is [0-9a-f]{{64}}"):
        check_machine(tmp_path, plan)


@pytest.mark.usefixtures("no_gpu")
def test_a_plan_without_a_gpu_is_refused_with_what_to_choose(
    planned: EngineFacts, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    assert planned.plan is not None
    library = tmp_path / planned.plan.library_file
    library.write_bytes(b"plugins")
    digest = opening.library_digest(library)
    plan = replace(planned.plan, version=rtx.__version__, library_sha256=digest)
    with pytest.raises(EngineMismatch, match="torch sees none here: choose runner 'torch'"):
        check_machine(tmp_path, plan)


def test_where_an_engine_s_own_library_is_older_this_checkout_s_is_called(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own, checkouts = tmp_path / "own.so", tmp_path / "checkouts.so"
    checkouts.touch()

    def launchers(library: Path) -> Path:
        if library == own:
            raise EngineMismatch("own.so is of other code")
        return library

    monkeypatch.setattr(opening, "Launchers", launchers)
    monkeypatch.setattr(opening, "_kernels", lambda folder: own)
    monkeypatch.setattr(opening, "BUILT_LIBRARY", checkouts)
    assert opening._launchers(tmp_path) == checkouts  # type: ignore[comparison-overlap]
    assert "checkouts.so is called in its place: own.so is of other code" in caplog.text
    checkouts.unlink()
    with pytest.raises(EngineMismatch, match=r"own\.so is of other code"):
        opening._launchers(tmp_path)
