"""Checkpoints and archives with something wrong: taken, or refused in a sentence."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from folder_machine import FolderMachine
from fuzz.files import FEWEST, Fault, archive_faults, checkpoint_faults
from paths import ROOT

from legokv.cli import main

SECONDS = 15


def test_a_checkpoint_with_something_wrong_is_built_or_refused_in_a_sentence(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record_property: Callable[[str, object], None],
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    monkeypatch.setattr("ending._on_signals", lambda handler: None)
    import build_engine

    trials = checkpoint_faults(tiny_checkpoint("llama"), tmp_path, 1, SECONDS, build_engine.main)
    check(trials, record_property, "checkpoints")


def test_an_archive_with_something_wrong_is_taken_or_refused_in_a_sentence(
    tiny_engine_folder: Callable[[], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    record_property: Callable[[str, object], None],
) -> None:
    here, there = (FolderMachine(tiny_engine_folder(), tmp_path / n) for n in ("here", "there"))
    for number in (0, 1):
        here.register(number)
    sound = tmp_path / "set.tar"
    assert here.command(capsys, "export", sound)[0] == 0

    def take(path: Path) -> int:
        return main(["cache", "import", *map(str, there.options), str(path)])

    check(archive_faults(sound, tmp_path, 1, SECONDS, take), record_property, "archives")


def check(
    trials: Iterator[Fault | None], record_property: Callable[[str, object], None], what: str
) -> None:
    seen = list(trials)
    record_property("fact", f"{len(seen)} damaged {what}")
    assert [(fault.file, fault.why) for fault in seen if fault] == []
    assert len(seen) >= FEWEST
