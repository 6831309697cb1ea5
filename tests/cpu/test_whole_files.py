"""A folder is replaced whole, and what killed makers left beside it is removed by the next."""

import subprocess
import sys
from pathlib import Path

import pytest

from legokv.whole_files import replaced_folder

# Stops where it is told, holding the hidden folder as a build does that is killed there.
MAKER = """
import sys
from pathlib import Path
from legokv.whole_files import replaced_folder

def stop():
    print("here", flush=True)
    sys.stdin.read()

path, place = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename
if place == "between":
    Path.rename = lambda self, to: stop() if self.name == "new" else rename(self, to)
with replaced_folder(path) as folder:
    (folder / "half").write_text("made")
    if place == "inside":
        stop()
"""


def made(path: Path, content: str) -> None:
    with replaced_folder(path) as folder:
        (folder / "content").write_text(content)


def start_maker(path: Path, place: str) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", MAKER, str(path), place],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    return process


def killed(process: "subprocess.Popen[str]") -> None:
    with process:
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_maker_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed(start_maker(tmp_path / "engine", "inside"))
    assert len(names(tmp_path)) == 1
    made(tmp_path / "engine", "whole")
    assert names(tmp_path) == ["engine"]
    assert names(tmp_path / "engine") == ["content"]


def test_what_a_living_maker_has_begun_is_left_alone(tmp_path: Path) -> None:
    maker = start_maker(tmp_path / "engine", "inside")
    made(tmp_path / "engine", "of another")
    assert len(names(tmp_path)) == 2
    maker.communicate("")
    assert maker.returncode == 0
    assert names(tmp_path) == ["engine"]
    assert names(tmp_path / "engine") == ["half"]


def test_a_maker_killed_between_old_and_new_costs_nobody_the_old_one(tmp_path: Path) -> None:
    made(tmp_path / "engine", "old")
    killed(start_maker(tmp_path / "engine", "between"))
    assert not (tmp_path / "engine").exists()
    with (
        pytest.raises(ValueError, match="the next one fails"),
        replaced_folder(tmp_path / "engine"),
    ):
        raise ValueError("the next one fails")
    assert (tmp_path / "engine/content").read_text() == "old"
    assert names(tmp_path) == ["engine"]


def test_folders_that_only_look_like_leftovers_stay(tmp_path: Path) -> None:
    for name in (".engine-mine", ".engine-12345678", ".engine-wide-12345678"):
        (tmp_path / name).mkdir()
    killed(start_maker(tmp_path / "engine-wide", "inside"))
    before = names(tmp_path)
    made(tmp_path / "engine", "whole")
    assert names(tmp_path) == sorted([*before, "engine"])
