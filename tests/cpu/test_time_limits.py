"""A test that hangs is a failure with a stack, and not a run that never ends."""

import subprocess
import sys
from pathlib import Path

import pytest

SETTINGS = Path(__file__).resolve().parents[2] / "pyproject.toml"

WAITS = """
import threading

def test_waits_for_nobody():
    threading.Event().wait()

def test_after_it():
    pass
"""
TAKES_NO_SIGNAL = """
import signal, time

def test_sleeps_where_no_signal_is_seen():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    time.sleep(60)
"""


def run(folder: Path, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest with this project's settings, but for the seconds, over one file of tests."""
    file = folder / "test_hanging.py"
    file.write_text(text)
    command = [sys.executable, "-m", "pytest", "-c", SETTINGS, "--rootdir", folder, *options, file]
    return subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)


def test_a_test_that_waits_for_ever_fails_with_a_stack_and_the_next_is_run(tmp_path: Path) -> None:
    ended = run(tmp_path, WAITS, "-o", "timeout=1")
    assert ended.returncode == 1
    assert "Failed: Timeout (>1.0s) from pytest-timeout" in ended.stdout
    assert "threading.Event().wait()" in ended.stdout
    assert "1 failed, 1 passed" in ended.stdout


def test_a_test_that_no_signal_ends_ends_the_run_with_a_stack(tmp_path: Path) -> None:
    ended = run(tmp_path, TAKES_NO_SIGNAL, "-o", "timeout=1", "-o", "faulthandler_timeout=2")
    assert ended.returncode not in (0, 5)
    assert "in test_sleeps_where_no_signal_is_seen" in ended.stderr
    assert "passed" not in ended.stdout


def test_both_limits_are_set_for_every_run(pytestconfig: pytest.Config) -> None:
    seconds = float(pytestconfig.getini("timeout"))
    assert 0 < seconds < float(pytestconfig.getini("faulthandler_timeout"))
    assert pytestconfig.getini("faulthandler_exit_on_timeout")
