"""An interrupted compilation of the plugins ends the compilers too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMPILE = """
import signal, sys
from pathlib import Path
from legokv import plugin_library

signal.signal(signal.SIGTERM, signal.default_int_handler)
command = ["sh", "-c", "sleep 300 & echo [$!]; wait"]
try:
    plugin_library._run(command, Path("."), lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; its starter may not have looked at how it ended."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_compilation_ends_what_it_started(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", COMPILE],
        stdout=subprocess.PIPE,
        text=True,
        # Tests that were started in the background hand down a SIGINT that is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        compiler = int(process.stdout.readline().strip("[]\n"))
        process.send_signal(number)
        assert process.wait(timeout=60) == 130
    deadline = time.monotonic() + 10
    while not has_ended(compiler):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_build_plugins_ends_in_a_line_and_its_compiler_with_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = Path(__file__).resolve().parents[2] / "build" / "build_plugins.py"
    nvcc, pid = tmp_path / "nvcc", tmp_path / "pid"
    nvcc.write_text(f"#!/bin/sh\necho $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 300\n")
    nvcc.chmod(0o755)
    (tmp_path / "NvInferRuntime.h").touch()
    tools = {"CUDACXX": str(nvcc), "TENSORRT_INCLUDE": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, str(script), "--output", str(tmp_path / "out")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **tools},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        deadline = time.monotonic() + 60
        while not pid.exists():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read() == "build_plugins.py: interrupted, nothing written\n"
        assert process.wait(timeout=60) == 130
    deadline = time.monotonic() + 10
    while not has_ended(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.02)
