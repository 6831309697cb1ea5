"""CMake's cache of a build folder: starting anew where it is of another place or compiler."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

CACHE_FILE = "CMakeCache.txt"

_ENTRY = re.compile(r"^(\w+):\w+=(.*)$", re.MULTILINE)

Say = Callable[[str], None]


def drop_foreign_cache(folder: Path, expected: Mapping[str, Path], say: Say) -> None:
    """Remove the cache and objects in `folder` if an expected path is another one there.

    CMake refuses a moved or copied folder, and forgets options where the compiler changes. `say`
    gets one line that names both paths; what was linked stays. A path the cache lacks is no reason.
    """
    file = folder / CACHE_FILE
    if not file.is_file():
        return
    cached = dict(_ENTRY.findall(file.read_text(encoding="utf-8")))
    for name, path in expected.items():
        if name in cached and Path(cached[name]).resolve() != path.resolve():
            say(f"{folder} was made for {cached[name]}, now it is {path}: compiling it all again")
            file.unlink()
            _remove_objects(folder)
            return


def _remove_objects(folder: Path) -> None:
    for objects in [*folder.rglob("CMakeFiles")]:
        if objects.exists():  # else it lay in another that has gone
            shutil.rmtree(objects)


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
