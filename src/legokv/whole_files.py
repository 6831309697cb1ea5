"""A folder that appears whole or not at all: made beside its place, in a hidden one of its own.

The hidden one is locked while its maker lives, so what a killed one left is known for that.
"""

import fcntl
import glob
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` that takes its place at the end, or vanishes on an error.

    What makers of `path` left that were killed is removed first, and nothing of one that lives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_leftovers(path)
    scratch = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}-"))
    with open(scratch / f".{_LOCK}", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            # Under this name only when it is held: without one, the folder is nobody's leftover.
            (scratch / f".{_LOCK}").rename(scratch / _LOCK)
            (scratch / "new").mkdir()
            yield scratch / "new"
            if path.exists():
                path.rename(scratch / "old")
            (scratch / "new").rename(path)
        finally:
            # Before the lock is let go, or another maker would remove it at the same time.
            _remove(scratch, path)


def _remove_leftovers(path: Path) -> None:
    for file in path.parent.glob(f".{glob.escape(path.name)}-????????/{_LOCK}"):
        # Another's to remove, or removed by another just now, or held by one that lives.
        with (
            suppress(PermissionError, FileNotFoundError, BlockingIOError),
            open(file, "r+") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(file.parent, path)


def _remove(scratch: Path, path: Path) -> None:
    """Remove a maker's folder; what it had moved away and not replaced goes back to `path`."""
    if (scratch / "old").exists() and not path.exists():
        (scratch / "old").rename(path)
    shutil.rmtree(scratch)
