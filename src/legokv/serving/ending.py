"""What a server and its models tell each other by files in the server's folder.

That answers under way end now: while Triton stops, it takes no requests, and a model is told last.
And why a model did not start: Triton says it among lines of its own.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from legokv.errors import LegokvError, sentence_of
from legokv.serving.event_stream import FOLDER_VARIABLE

_NAME = "ending"
_FAILED = "failed-"
_LOOK_SECONDS = 0.1


@contextmanager
def failure_told(model: str, environment: Mapping[str, str]) -> Iterator[None]:
    """Let the server know why this block, in which a model's process starts, was refused."""
    try:
        yield
    except LegokvError as error:
        if FOLDER_VARIABLE in environment:
            _write(Path(environment[FOLDER_VARIABLE]), f"{_FAILED}{model}", sentence_of(error))
        raise


def failure_in(folder: Path) -> str | None:
    """Why a model of the server with this folder did not start, if one has told."""
    files = sorted(folder.glob(f"{_FAILED}*"))
    return files[0].read_text(encoding="utf-8") if files else None


def tell_ending(folder: Path, sentence: str) -> None:
    """Have all answers under way of the server with this folder end with `sentence`."""
    _write(folder, _NAME, sentence)


def _write(folder: Path, name: str, sentence: str) -> None:
    """The file is whole or not there."""
    written = folder / f".{name}"
    written.write_text(sentence, encoding="utf-8")
    written.rename(folder / name)


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
