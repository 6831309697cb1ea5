"""Checkpoints and archives with something wrong: taken, or refused in a sentence."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from folder_machine import FolderMachine
from fuzz.files import Fault, archive_faults, checkpoint_faults
from paths import ROOT

from legokv.cli import main

SEED = 1
NUM_CHECKPOINTS, NUM_ARCHIVES = 40, 50
"""Always the same ones: `make fuzz` looks for others. About 10 s of one core."""


def test_a_checkpoint_with_something_wrong_is_built_or_refused_in_a_sentence(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    torch_threads: Callable[[int], None],
) -> None:
    torch_threads(1)
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    monkeypatch.setattr("ending._on_signals", lambda handler: None)
    import build_engine

    trials = checkpoint_faults(tiny_checkpoint("llama"), tmp_path, SEED, build_engine.main)
    check(islice(trials, NUM_CHECKPOINTS))


def test_an_archive_with_something_wrong_is_taken_or_refused_in_a_sentence(
    tiny_engine_folder: Callable[[], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    here, there = (FolderMachine(tiny_engine_folder(), tmp_path / n) for n in ("here", "there"))
    for number in (0, 1):
        here.register(number)
    sound = tmp_path / "set.tar"
    assert here.command(capsys, "export", sound)[0] == 0

    def take(path: Path) -> int:
        return main(["cache", "import", *map(str, there.options), str(path)])

    check(islice(archive_faults(sound, tmp_path, SEED, take), NUM_ARCHIVES))


def check(trials: Iterator[Fault | None]) -> None:
    assert [(fault.file, fault.why) for fault in trials if fault] == []
