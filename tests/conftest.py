"""Fixtures every test folder may use. Its being here also puts tests/ on the import path."""

import gc
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from made_once import made_once
from paths import ROOT
from recorded_facts import pytest_terminal_summary  # noqa: F401 - the hook
from redis_server import redis_running
from tiny_checkpoints import make_tiny_checkpoint

from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.built.folder import MODEL_FILE
from legokv.engine.metrics import EngineMetrics, FailedStepReason
from legokv.step.graph import ImportBy


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    # Here, for a GPU's machine has no xdist.
    from by_folder import ByFolder

    return ByFolder(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What stands once all is imported is never garbage: a million objects, looked at no more."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m alone`, files without such a test are not imported: all of them take long."""
    if config.option.markexpr != "alone" or not collection_path.match("test_*.py"):
        return None
    return "mark.alone" not in collection_path.read_text(encoding="utf-8") or None


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its variant's name, made once. Not to be written to."""

    def folder(name: str) -> Path:
        make = partial(make_tiny_checkpoint, name)
        return made_once(tmp_path_factory, f"checkpoints/{name}", make)

    return folder


@pytest.fixture(scope="session")
def tiny_engine_folder(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The float32 engine folder of a tiny checkpoint by its variant's name, built once."""

    def folder(name: str = "llama") -> Path:
        settings = BuildSettings(name, dtype="float32")
        build = partial(build_engine_folder, tiny_checkpoint(name), settings=settings)
        return made_once(tmp_path_factory, f"engines/{name}", build)

    return folder


@pytest.fixture(scope="session")
def exported(
    tiny_engine_folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """model.onnx of a tiny checkpoint in a dtype, by what its pages arrive with; made once."""
    from graph_session import export_engine

    def file(name: str, dtype: str, imports: ImportBy = "plugin") -> Path:
        folder = tiny_engine_folder(name)

        def make(target: Path) -> None:
            target.mkdir()
            export_engine(folder, dtype, target, imports)

        return made_once(tmp_path_factory, f"onnx/{name}-{dtype}-{imports}", make) / MODEL_FILE

    return file


@pytest.fixture(autouse=True)
def no_fault_of_one_ends_all(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No engine in this process ends all that is under way, but where a test is about that.

    What a server's engine counts of it is looked at when the server ends.
    """
    ended: list[str] = []
    count = EngineMetrics.step_failed

    def step_failed(metrics: EngineMetrics, reason: FailedStepReason) -> None:
        ended.append(reason)
        count(metrics, reason)

    monkeypatch.setattr(EngineMetrics, "step_failed", step_failed)
    yield
    allowed = request.node.get_closest_marker("ends_all") is not None
    assert ("engine" in ended) == allowed


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis for tests that leave it running; each takes a model name of its own."""
    with redis_running(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture(scope="session")
def smollm2_engine_folder() -> Path:
    """The real small model's engine folder, built as `make run` builds it if it is missing."""
    # A process of its own: what it fetches writes to its output, and pytest's own has no file.
    script = ROOT / "build" / "build_engine.py"
    subprocess.run([sys.executable, str(script), "--model", "llama"], check=True)
    return ROOT / "out" / "engines" / "llama"
