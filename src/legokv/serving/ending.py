"""What a server and its models tell each other by files in the server's folder.

That answers under way end now: while Triton stops, it takes no requests, and a model is told last.
That one request's client is gone, for Triton ends by itself of some cancellations. And why a model
did not start: Triton says it among lines of its own.
"""

import re
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from legokv.errors import LegokvError, sentence_of
from legokv.serving.event_stream import FOLDER_VARIABLE

_NAME = "ending"
_FAILED = "failed-"
_LOOK_SECONDS = 0.1
LEFT_VARIABLE = "_LEGOKV_LEFT"
"""Names the environment's folder in which the front says that a client is gone; no setting."""
LEFT_PARAMETER = "legokv_left"
"""The parameter with which the front names a request."""
_LEFT_NAME = re.compile("[0-9a-f]{32}")


class Leaving:
    """One request's client, who is there until `leave`. Its `name` tells the request to a model."""

    def __init__(self, folder: Path) -> None:
        self.name = uuid.uuid4().hex
        self._file = folder / self.name

    def leave(self) -> None:
        """Let the model know that nobody waits for the answer any more."""
        with suppress(OSError):  # the server is being ended, and all answers with it
            self._file.touch()

    def forget(self) -> None:
        """The request has ended."""
        with suppress(OSError):
            self._file.unlink()


def client_left(name: object, environment: Mapping[str, str]) -> Callable[[], bool]:
    """Asks whether the client of the request that the front calls so is gone."""
    folder = environment.get(LEFT_VARIABLE)
    if folder is None or not (isinstance(name, str) and _LEFT_NAME.fullmatch(name)):
        return lambda: False
    return Path(folder, name).exists


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
