"""The fastest build of the attention: measured once a processor and type, kept, read again."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from legokv.built.settings import EngineSettings
from legokv.engine.engine import Engine
from legokv.kernels import fastest
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls
from legokv.kernels.fastest import measured_forms, measured_threads
from legokv.kernels.native_library import InstructionSet, NativeLibrary


@pytest.fixture
def calls(tmp_path: Path) -> NativeCalls:
    """The library in a folder of its own."""
    copied = tmp_path / "library.so"
    copied.write_bytes(build_native_library(print).read_bytes())
    return NativeCalls(NativeLibrary(copied))


def kept(folder: Path) -> list[Path]:
    return sorted(folder.glob("fastest-*.json"))


@pytest.fixture
def several(calls: NativeCalls) -> NativeCalls:
    if len(calls.instruction_sets()) < 4:
        pytest.skip("this processor or compiler has one build only: nothing is measured")
    return calls


def test_each_build_that_can_do_the_type_is_measured_and_kept_fastest_first(
    several: NativeCalls, tmp_path: Path
) -> None:
    figures = measured_forms(several, torch.float32)
    assert {InstructionSet.AVX2} <= set(figures)
    assert not [each for each in figures if each.bfloat16_only]
    assert InstructionSet.PORTABLE not in figures
    assert list(figures.values()) == sorted(figures.values())
    (file,) = kept(tmp_path)
    assert json.loads(file.read_text()) == {
        each.name.lower(): value for each, value in figures.items()
    }


def test_what_was_kept_is_taken_and_nothing_measured(
    several: NativeCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured_forms(several, torch.bfloat16)
    (file,) = kept(tmp_path)
    figures = json.loads(file.read_text())
    figures["avx2"] = 0.001
    file.write_text(json.dumps(figures))
    monkeypatch.setattr(fastest, "_measured", lambda *_: pytest.fail("it was measured again"))
    assert next(iter(measured_forms(several, torch.bfloat16))) == InstructionSet.AVX2


@pytest.mark.parametrize("text", ["", "[]", '{"avx2": "fast"}', '{"sse": 1}', '{"portable": 1}'])
def test_figures_that_are_broken_or_of_other_builds_are_measured_anew(
    several: NativeCalls, tmp_path: Path, text: str
) -> None:
    expected = set(measured_forms(several, torch.float32))
    (file,) = kept(tmp_path)
    file.write_text(text)
    assert set(measured_forms(several, torch.float32)) == expected
    assert {name.upper() for name in json.loads(file.read_text())} == {e.name for e in expected}


def test_the_first_of_two_processes_decides_for_both(
    several: NativeCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = fastest._measured

    def overtaken(*arguments):
        figures = measure(*arguments)
        first = {**figures, InstructionSet.AVX2: 0.001}
        monkeypatch.setattr(fastest, "_measured", lambda *_: first)
        measured_forms(several, torch.float32)
        return figures

    monkeypatch.setattr(fastest, "_measured", overtaken)
    assert next(iter(measured_forms(several, torch.float32))) == InstructionSet.AVX2
    assert len(kept(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_to_is_no_error(
    several: NativeCalls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr(fastest.os, "link", refused)
    with caplog.at_level(logging.INFO):
        assert measured_forms(several, torch.float32)
    assert "what is fastest is measured at each start, since read-only" in caplog.text
    assert not [*kept(tmp_path), *tmp_path.glob(".fastest-*")]


@pytest.mark.parametrize("figures", [(1.0, 1.7, 4), (1.0, 0.97, 4), (1.0, 0.9, 3), (2.0, 0.9, 3)])
def test_one_thread_fewer_is_taken_where_it_is_clearly_faster_and_then_kept(
    calls: NativeCalls,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    figures: tuple[float, float, int],
) -> None:
    all_of_them, fewer, best = figures
    monkeypatch.setattr(fastest, "torch_threads", lambda: 4)
    monkeypatch.setattr(fastest.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(fastest.os, "getloadavg", lambda: (63.9, 99.0, 99.0))
    monkeypatch.setattr(fastest, "_seconds_of_layers", lambda *_: {4: all_of_them, 3: fewer})
    portable = InstructionSet.PORTABLE
    found = measured_threads(calls, torch.float32, portable)
    assert next(iter(found)) == best
    assert found == {4: 1000 * all_of_them, 3: 1000 * fewer}
    monkeypatch.setattr(fastest, "_seconds_of_layers", lambda *_: pytest.fail("measured again"))
    assert list(measured_threads(calls, torch.float32, portable)) == list(found)
    (file,) = tmp_path.glob("num_threads-*-float32-4.json")
    file.write_text("{}")
    monkeypatch.setattr(fastest, "_seconds_of_layers", lambda *_: {4: 3.0, 3: 1.0})
    assert next(iter(measured_threads(calls, torch.float32, portable))) == 3


def test_two_measurements_that_disagree_leave_all_threads(
    calls: NativeCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "torch_threads", lambda: 4)
    monkeypatch.setattr(fastest.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    seconds = iter([{4: 2.0, 3: 1.0}, {4: 1.0, 3: 1.0}])
    monkeypatch.setattr(fastest, "_seconds_of_layers", lambda *_: next(seconds))
    for _ in range(2):
        found = measured_threads(calls, torch.float32, InstructionSet.PORTABLE)
        assert next(iter(found)) == 4


def test_an_engine_of_one_thread_leaves_a_later_one_its_choice(
    tiny_engine_folder: Callable[[str], Path],
    torch_threads: Callable[[int], None],
) -> None:
    folder = tiny_engine_folder("llama")
    torch_threads(2)
    fastest.torch_threads.cache_clear()
    settings = EngineSettings(
        runner="torch", attention="torch", pool_tokens=64, max_step_tokens=64, num_threads=1
    )
    Engine.open(folder, settings=settings)
    assert fastest.torch_threads() == 2
    fastest.torch_threads.cache_clear()


def test_both_numbers_of_threads_are_measured_over_real_layers(
    calls: NativeCalls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "torch_threads", lambda: 2)
    monkeypatch.setattr(fastest.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    found = measured_threads(calls, torch.float32, InstructionSet.PORTABLE)
    assert set(found) == {1, 2}
    assert all(value > 0 for value in found.values())


def test_where_torch_has_one_thread_nothing_is_measured(
    calls: NativeCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "torch_threads", lambda: 1)
    assert measured_threads(calls, torch.float32, InstructionSet.PORTABLE) == {1: 0.0}
    assert not list(tmp_path.glob("num_threads-*"))


def test_a_busy_machine_judges_nothing_keeps_nothing_and_computes_on_all_threads(
    calls: NativeCalls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fastest, "torch_threads", lambda: 4)
    monkeypatch.setattr(fastest.os, "getloadavg", lambda: (8.0, 0.0, 0.0))
    monkeypatch.setattr(fastest.os, "cpu_count", lambda: 8)
    monkeypatch.setattr(fastest, "_seconds_of_layers", lambda *_: pytest.fail("it was measured"))
    assert measured_threads(calls, torch.float32, InstructionSet.PORTABLE) == {4: 0.0}
    assert not list(tmp_path.glob("num_threads-*"))
