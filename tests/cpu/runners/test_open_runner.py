"""Which runner an engine gets here, and what one is told that this machine can't run."""

import logging
import re
import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_session import LIMITS, plan_of
from paths import ROOT

from legokv.built.folder import EngineFacts, read_engine_folder
from legokv.built.plan_limits import SizeRange
from legokv.built.settings import EngineSettings
from legokv.engine.engine import Engine
from legokv.errors import EngineMismatch, InvalidRequest
from legokv.ops.kv_import import import_stored
from legokv.runners import opening
from legokv.runners.eager import EagerRunner
from legokv.runners.opening import check_machine, open_runner
from legokv.step.graph import graph_shape

SCORING = "tensorrt-rtx.scoring.plan"
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


@pytest.fixture
def opens_any_plan(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a plan's runner is made of, in order, where any plan opens."""
    order: list[str] = []
    monkeypatch.setattr(opening, "check_machine", lambda *of: None)
    monkeypatch.setattr(opening, "_gpu", lambda settings: torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(opening, "PageStore", lambda *of, **named: order.append("pool"))
    monkeypatch.setattr(opening, "open_plan", lambda *of: order.append("plan"))
    monkeypatch.setattr(opening, "TensorRTRunner", lambda *of: of)
    monkeypatch.setattr(opening, "DeviceGuard", lambda runner: runner)
    return order


def test_a_plan_whose_file_is_gone_is_a_mismatch_and_auto_answers_without_it(
    opens_any_plan: list[str], planned: EngineFacts, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(EngineMismatch, match=r"none\.plan cannot be read: No such file"):
        open_runner(folder, planned, replace(SETTINGS, runner="plan"))
    monkeypatch.setattr(opening, "gpu_architecture", lambda *number: "sm_90")
    monkeypatch.setattr(opening, "_library", lambda folder: None)
    assert isinstance(open_runner(folder, planned, SETTINGS), EagerRunner)
    assert "plan" not in opens_any_plan


def test_a_plan_s_pool_has_its_memory_before_weights_get_what_is_left(
    opens_any_plan: list[str], planned: EngineFacts, folder: Path, tmp_path: Path
) -> None:
    here = Path(shutil.copytree(folder, tmp_path / "e"))
    assert planned.plan is not None
    for name in (planned.plan.plan_file, SCORING):
        (here / name).write_bytes(b"plan")
    scored = replace(planned.plan, scoring_file=SCORING, scoring_layers=(0,))
    facts = replace(planned, plan=scored)
    *_, scoring = open_runner(here, facts, replace(SETTINGS, runner="plan"))  # type: ignore[misc]
    # That of the scoring pass waits for who asks for it.
    assert opens_any_plan == ["pool", "plan"]
    assert (scoring.shape.layers, scoring.profile.name) == (range(1), "scoring")
    assert scoring.profile.ranges["B"] == SizeRange(1, 1, 1)
    ranges = scored.profiles[0].ranges
    assert all(scoring.profile.ranges[symbol] == ranges[symbol] for symbol in "PNM")
    assert scoring.profile.ranges["T"].most == ranges["T"].most


def scoring_of(folder: Path, facts: EngineFacts, **changes: object) -> object:
    """What a runner is told of the scoring pass over a plan that is otherwise `facts`'."""
    assert facts.plan is not None
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size)
    plan = replace(facts.plan, **changes)  # type: ignore[arg-type]
    return opening._scoring_plan(folder, replace(facts, plan=plan), plan, graph)


def test_a_plan_by_older_code_says_the_command_that_gives_it_a_scoring_plan(
    folder: Path, planned: EngineFacts, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = replace(LIMITS, max_step_tokens=99, max_sequences=7)
    words = scoring_of(folder, planned, limits=limits, flags=("weight_streaming",))
    before, command, after = re.split(r"again with |, or open", str(words))
    assert before == "which this engine's plan, built by older code, does not say: build it "
    assert after == " it with runner 'cuda', or 'torch' on a CPU"
    script, *options = shlex.split(command)
    assert (ROOT / script).is_file()
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    import engine_command

    arguments = engine_command.parse_arguments(None, options)
    # Not left out: a checkpoint in few bits would make the plan one of few bits.
    assert (planned.weights, arguments.quantize) == ("model", "none")
    asked = engine_command._settings(arguments, "auto")
    assert (asked.name, asked.dtype, asked.page_size) == (
        planned.name, planned.dtype, planned.page_size
    )  # fmt: skip
    assert (asked.limits, asked.imports, asked.flags) == (limits, "plugin", ("weight_streaming",))
    assert options[:4] == ["--checkpoint", str(folder), "--output", str(folder)]


def test_a_plan_of_tensorrt_llm_has_no_scoring_plan_and_says_whose_have(
    folder: Path, planned: EngineFacts
) -> None:
    assert scoring_of(folder, planned, flavour="tensorrt-llm") == (
        "which no plan of tensorrt-llm says: build it with --backend tensorrt, tensorrt-rtx, or "
        "open it with runner 'cuda', or 'torch' on a CPU"
    )


@pytest.mark.parametrize("layers", [(), (0, 2), (1, 0), (-1, 0)])
def test_a_scoring_plan_of_layers_that_are_none_is_a_mismatch(
    folder: Path, planned: EngineFacts, tmp_path: Path, layers: tuple[int, ...]
) -> None:
    (tmp_path / SCORING).write_bytes(b"plan")
    with pytest.raises(EngineMismatch, match="which do not follow one another: build the engine"):
        scoring_of(tmp_path, planned, scoring_file=SCORING, scoring_layers=layers)


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


def test_a_plan_whose_plugins_are_gone_names_their_place_and_the_next_step(
    planned: EngineFacts, tmp_path: Path
) -> None:
    rtx = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")
    assert planned.plan is not None
    plan = replace(planned.plan, version=rtx.__version__)
    place = tmp_path / plan.library_file
    words = f"{place} cannot be read: No such file or directory; build the engine again"
    with pytest.raises(EngineMismatch, match=re.escape(words)):
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
