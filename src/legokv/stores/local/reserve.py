"""Room on the disk that is kept back, so that what frees room can be written on a full disk."""

import os
from contextlib import suppress
from pathlib import Path

from legokv.whole_files import private_opener

RESERVE_BYTES = 4 * 2**20
"""More than SQLite writes to delete a document: what becomes free is not written."""


class Reserve:
    """A file that takes the room, until somebody needs it who will free more."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Have the room kept, if there is more than twice as much."""
        with suppress(OSError):  # then there is none to keep
            if self._free() < 2 * RESERVE_BYTES:
                return
            with open(self._path, "ab", opener=private_opener) as file:
                if os.fstat(file.fileno()).st_size < RESERVE_BYTES:
                    os.posix_fallocate(file.fileno(), 0, RESERVE_BYTES)

    def give(self) -> bool:
        """Give the room up, if the disk has no other: whether it has not."""
        with suppress(OSError):  # none was kept, or the folder is gone
            if self._free() >= RESERVE_BYTES:
                return False
            os.truncate(self._path, 0)
        return True

    def _free(self) -> int:
        disk = os.statvfs(self._path.parent)
        return disk.f_bavail * disk.f_frsize
