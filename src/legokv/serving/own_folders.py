"""Folders of temporary files that go with their process; a later one removes a killed one's."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def own_folder(prefix: str, parent: Path | None = None) -> Iterator[Path]:
    """A folder in `parent`, else in the system's for temporary files, gone after the block.

    Those of the same prefix that ended processes left there are removed. It is locked as long as
    this process lives, so that nobody takes it for one of them.
    """
    place = Path(tempfile.gettempdir()) if parent is None else parent
    _remove_stale_folders(place, prefix)
    with tempfile.TemporaryDirectory(prefix=f"{prefix}{os.getpid()}-", dir=place) as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def owner_is_gone(pid: str) -> bool:
    """Whether a number in a name is that of no process here."""
    return pid.isdecimal() and not Path("/proc", pid).exists()


def _remove_stale_folders(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        # Between making its folder and locking it a process is known by its number alone.
        if owner_is_gone(folder.name.removeprefix(prefix).split("-")[0]):
            _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    """Processes of other containers, whose numbers mean nothing here, hold their locks here too."""
    # Another user's folder, or one that its process removes just now.
    with suppress(PermissionError, FileNotFoundError, NotADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)
