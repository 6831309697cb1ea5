"""An interrupted compilation of the plugins ends the compilers too."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from processes import has_ended, soon

COMPILE = """
import signal, sys
from pathlib import Path
from legokv.kernels.toolchain import run_compiler

signal.signal(signal.SIGTERM, signal.default_int_handler)
command = ["sh", "-c", "sleep 300 & echo [$!]; wait"]
try:
    run_compiler(command, lambda line: print(line, flush=True))
except KeyboardInterrupt:
    sys.exit(130)
"""


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
    soon(lambda: has_ended(compiler))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_build_plugins_ends_in_a_line_and_its_compiler_with_it(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = ROOT / "build" / "build_plugins.py"
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
        soon(pid.exists)
        process.send_signal(number)
        assert process.stderr is not None
        assert process.stderr.read() == "build_plugins.py: interrupted\n"
        assert process.wait(timeout=60) == 130
    soon(lambda: has_ended(int(pid.read_text())))
