"""What a killed server left in the temporary folder goes with the next start, and nothing else."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from legokv.serving.triton.processes import server_folder

SERVER = """
import sys
from legokv.serving.triton.processes import server_folder
with server_folder() as folder:
    (folder / "python").mkdir()
    (folder / "python" / "file").write_text("x")
    print(folder, flush=True)
    sys.stdin.read()
"""
Start = Callable[[], tuple["subprocess.Popen[str]", Path]]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts processes that hold a server's folder in one temporary folder, this one's too."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    started = []

    def begin() -> tuple["subprocess.Popen[str]", Path]:
        one = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(one)
        assert one.stdout is not None
        return one, Path(one.stdout.readline().strip())

    yield begin
    for one in started:
        one.communicate()


def test_a_folder_goes_with_its_server(start: Start, tmp_path: Path) -> None:
    with server_folder() as folder:
        assert folder.parent == tmp_path
        assert folder.is_dir()
    server, other = start()
    server.communicate()
    assert not folder.exists()
    assert not other.exists()


def test_a_killed_server_s_folder_goes_with_the_next_start_and_a_live_one_s_stays(
    start: Start, tmp_path: Path
) -> None:
    (killed, left), (_, used) = start(), start()
    (tmp_path / "legokv-notes").mkdir()
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert left.is_dir()
    with server_folder() as own:
        assert {entry.name for entry in tmp_path.iterdir()} == {
            used.name,
            own.name,
            "legokv-notes",
        }
        assert (used / "python" / "file").is_file()


def test_a_live_server_s_folder_stays_though_its_number_means_nobody_here(start: Start) -> None:
    _, used = start()
    process = subprocess.Popen(["true"])
    process.wait()
    elsewhere = used.with_name(f"legokv-serve-{process.pid}-other")
    os.rename(used, elsewhere)
    with server_folder():
        assert (elsewhere / "python" / "file").is_file()
    os.rename(elsewhere, used)
