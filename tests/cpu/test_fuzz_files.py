"""Files with something wrong: taken, or refused in a sentence. `make fuzz` looks for others."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from fuzz.files import Fault, Subject, faults
from fuzz.subjects import build, caches

SEED = 1
NUM_CHECKPOINTS = 40
NUM_COMMANDS = {"engine": 15, "cache": 50, "archive": 30}
"""Always the same ones. All together about 15 s of one core."""


@pytest.fixture(autouse=True)
def one_thread(torch_threads: Callable[[int], None]) -> None:
    torch_threads(1)


def test_a_checkpoint_with_something_wrong_is_built_or_refused_in_a_sentence(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    subject = Subject("llama", tiny_checkpoint("llama"), (build,))
    check(islice(faults(subject, tmp_path / "work", SEED), NUM_CHECKPOINTS))


def test_an_engine_a_cache_or_an_archive_with_something_wrong_is_taken_or_refused_in_a_sentence(
    tmp_path: Path,
) -> None:
    for subject in caches(tmp_path):
        trials = faults(subject, tmp_path / "work", SEED)
        check(islice(trials, NUM_COMMANDS[subject.name]))


def check(trials: Iterator[Fault | None]) -> None:
    assert [(fault.file, fault.why) for fault in trials if fault] == []
