"""Runs a compiler's command, and all it starts, to its end or an interruption's."""

import os
import re
import signal
import subprocess
from collections.abc import Callable, Sequence

KEPT_LINES = 30

_ERROR = re.compile(r"\berror\b", re.IGNORECASE)


def run_compiler(command: Sequence[str], heard: Callable[[str], None]) -> str | None:
    """None if it did its work, else its words on why not; `heard` gets every line as it comes.

    An interruption ends the command and all it has started.
    """
    lines: list[str] = []
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=subprocess.STDOUT, text=True, process_group=0
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line.rstrip())
                heard(lines[-1])
        except KeyboardInterrupt:
            # The group, as CMake does not end the compilers it has started.
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode == 0:
        return None
    return f"{' '.join(command[:3])} … failed:\n{why_it_failed(lines)}"


def why_it_failed(lines: Sequence[str]) -> str:
    """At most 30 lines from the first that names an error, or the last 30 if none does."""
    first = next((n for n, line in enumerate(lines) if _ERROR.search(line)), -KEPT_LINES)
    return "\n".join(lines[first:][:KEPT_LINES])
