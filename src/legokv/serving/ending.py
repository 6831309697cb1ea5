"""How a server tells its engine that answers under way end now: by a file in the server's folder.

Triton has no call for it: while it stops, it takes no requests, and a model is told last.
"""

import threading
from collections.abc import Callable
from pathlib import Path

_NAME = "ending"
_LOOK_SECONDS = 0.1


def tell_ending(folder: Path, sentence: str) -> None:
    """Have all answers under way of the server with this folder end with `sentence`."""
    written = folder / f"{_NAME}.new"
    written.write_text(sentence, encoding="utf-8")
    written.rename(folder / _NAME)


class EndingWatch:
    """Calls `end_all` with the sentence once it is told, from a thread of its own."""

    def __init__(self, folder: Path, end_all: Callable[[str], None]) -> None:
        self._file = folder / _NAME
        self._end_all = end_all
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="ending", daemon=True).start()

    def close(self) -> None:
        """Look no more."""
        self._closed.set()

    def _watch(self) -> None:
        while not self._closed.wait(_LOOK_SECONDS):
            if self._file.is_file():
                self._end_all(self._file.read_text(encoding="utf-8"))
                return
