"""Folders that appear whole or not at all, and files that are their owner's alone.

A folder is made beside its place, in a hidden one of its own. The hidden one is locked while its
maker lives, so what a killed one left is known for that.
"""

import fcntl
import glob
import logging
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOCK = "lock"
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
_OF_OTHERS = stat.S_IRWXG | stat.S_IRWXO

log = logging.getLogger(__name__)


def private_opener(path: str, flags: int) -> int:
    """For `open`: a file made by it is its owner's alone, whatever the umask is."""
    return os.open(path, flags, PRIVATE_FILE)


def make_private_folder(path: Path) -> None:
    """Make `path` for its owner alone, and its parents, unless it is there.

    One that is there and that others may enter is taken from them, with all that is in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    if path.stat().st_mode & _OF_OTHERS:
        log.warning("%s was open to other users; it is its owner's alone now", path)
        _take_from_others(path)


def _take_from_others(root: Path) -> None:
    """The folder itself last: if this is broken off, it is done again the next time."""
    with suppress(PermissionError):  # another user's: what its owner has made of it stays
        for folder, _, names in os.walk(root, topdown=False):
            for path in (*(Path(folder, name) for name in names), Path(folder)):
                with suppress(FileNotFoundError):
                    mode = path.lstat().st_mode
                    if not stat.S_ISLNK(mode):
                        path.chmod(stat.S_IMODE(mode) & ~_OF_OTHERS)


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


def write_private_file(path: Path, content: bytes) -> None:
    """Put the bytes at `path`, durably: whole or not at all, and their owner's alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with open(descriptor, "wb") as file:  # mkstemp makes it private
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
