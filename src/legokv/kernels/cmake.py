"""CMake's cache of a build folder: starting anew where it is of another place or compiler."""

import re
import shutil
from collections.abc import Callable, Mapping
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
