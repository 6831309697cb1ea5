"""What one server keeps outside its cache, and the removal of what killed servers left of it.

A folder of temporary files, and Triton's shared memory. No processes are started or ended here.
"""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_SHARED_MEMORY = Path("/dev/shm")
_MEMORY_PREFIX = "legokv_"
_FOLDER_PREFIX = "legokv-serve-"


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder of temporary files for this process's server, gone after the block.

    It is locked as long as this process lives, so that nobody takes it for one that was left.
    """
    parent = Path(tempfile.gettempdir())
    _remove_stale_folders(parent)
    with tempfile.TemporaryDirectory(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-") as name:
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _remove_stale_folders(parent: Path) -> None:
    for folder in parent.glob(f"{_FOLDER_PREFIX}*"):
        # Between making its folder and locking it a server is known by its number alone.
        if _owner_is_gone(folder.name.removeprefix(_FOLDER_PREFIX).split("-")[0]):
            _remove_unless_locked(folder)


def _remove_unless_locked(folder: Path) -> None:
    """Processes of other containers, whose numbers mean nothing here, hold their locks here too."""
    # Another user's folder, or one that its server removes just now.
    with suppress(PermissionError, FileNotFoundError, NotADirectoryError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder)
        except BlockingIOError:
            return
        finally:
            os.close(descriptor)


@contextmanager
def shared_memory_prefix() -> Iterator[str]:
    """What names of this process's shared memory begin with; none of it is left after the block."""
    for file in _SHARED_MEMORY.glob(f"{_MEMORY_PREFIX}*_*"):
        if _owner_is_gone(file.name.removeprefix(_MEMORY_PREFIX).split("_")[0]):
            with suppress(PermissionError):  # another user's
                file.unlink(missing_ok=True)
    prefix = f"{_MEMORY_PREFIX}{os.getpid()}_"
    try:
        yield prefix
    finally:
        for file in _SHARED_MEMORY.glob(f"{prefix}*"):
            file.unlink(missing_ok=True)


def _owner_is_gone(pid: str) -> bool:
    return pid.isdecimal() and not Path("/proc", pid).exists()
