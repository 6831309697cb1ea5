"""The build script called in this process: torch, which takes it two seconds, is loaded already."""

import contextlib
import io
import signal
import sys
from pathlib import Path
from subprocess import CompletedProcess

from paths import ROOT


def build_engine(*arguments: str | Path) -> CompletedProcess[str]:
    """What `python build/build_engine.py ARGUMENTS` ends with and says."""
    sys.path.insert(0, str(ROOT / "build"))
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    words = [str(argument) for argument in arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        from build_engine import main

        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(words)
    except SystemExit as ended:  # argparse's, of a wrong option
        status = int(ended.code or 0)
    finally:
        sys.path.pop(0)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return CompletedProcess(words, status, out.getvalue(), err.getvalue())
