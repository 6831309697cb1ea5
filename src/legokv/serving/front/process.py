"""The front as its starter sees it: one process, started again when it ends or hangs."""

import json
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from legokv.errors import ServerError
from legokv.parent_death import end_with_parent
from legokv.serving.ending import LEFT_VARIABLE
from legokv.serving.error_codes import CODES_VARIABLE
from legokv.serving.front.brief import Brief, http_socket
from legokv.serving.log import PROBE_VARIABLE, tell
from legokv.serving.settings import Settings

HANG_SECONDS = 30.0
"""After so long without a word the front is believed to hang."""
MAX_STARTS = 5
"""So often the front is started within STARTS_SECONDS."""
STARTS_SECONDS = 60.0


@dataclass(frozen=True)
class Beat:
    """What the front said last, and when by this process's clock."""

    heard: float
    reason: str = "the front has not asked yet"
    failing_seconds: float = 0.0
    asked: int = 0
    refusal: str = ""
    num_open: int = 0


class Front:
    """The front's process. For one thread; another reads what the process says."""

    def __init__(self, settings: Settings, brief: Brief) -> None:
        self._settings = settings
        self._brief = brief
        self._refusal = ""
        self._starts: list[float] = []
        self._needed_asked = 1
        self._start()

    def is_ready(self) -> bool:
        """Whether the last question to the server was answered."""
        self.look()
        return self._beat.asked >= self._needed_asked and not self._beat.reason

    def forget(self) -> None:
        """Believe nothing that was found out of a server that is no more."""
        # The next answer may be to a question that was asked before.
        self._needed_asked = self._beat.asked + 2

    def deaf_reason(self) -> str:
        """Why the server is believed to be deaf, "" if it is not."""
        self.look()
        beat = self._beat
        if not beat.reason or beat.failing_seconds < self._settings.deaf_seconds:
            return ""
        return f"no question was answered for {beat.failing_seconds:.0f} s: {beat.reason}"

    def refuse(self, sentence: str) -> None:
        """Refuse new requests with this sentence, and be not ready; "" ends that."""
        self._refusal = sentence
        self._tell()

    def num_open(self) -> int:
        """Requests under way; 1 or more also until the front has heard of the refusal."""
        beat = self._beat
        return beat.num_open if beat.refusal == self._refusal else max(1, beat.num_open)

    def look(self) -> None:
        """Start the process again if it has ended or hangs; ServerError if it does so often."""
        silent = time.monotonic() - self._beat.heard
        if self._process.poll() is None and silent < HANG_SECONDS:
            return
        ended = self._process.poll()
        what = f"hung for {silent:.0f} s" if ended is None else f"ended with status {ended}"
        self.end()
        now = time.monotonic()
        self._starts = [then for then in self._starts if now - then < STARTS_SECONDS]
        if len(self._starts) >= MAX_STARTS:
            raise ServerError(f"the front {what}, {MAX_STARTS} times in {STARTS_SECONDS:g} s")
        tell(f"legokv: the front {what}; it starts again")
        self._start()

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.wait()

    def _start(self) -> None:
        self._starts.append(time.monotonic())
        self._beat = Beat(time.monotonic())
        self._needed_asked = 1
        self._process = subprocess.Popen(
            [sys.executable, "-m", "legokv.serving.doors"],
            env={**os.environ, **self._settings.environment(), **self._brief.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Ctrl-C in a terminal is for whoever started it.
            start_new_session=True,
            preexec_fn=partial(end_with_parent, signal.SIGKILL),
        )
        process = self._process
        threading.Thread(target=self._listen, args=(process,), name="front", daemon=True).start()
        if self._refusal:
            self._tell()

    def _tell(self) -> None:
        assert self._process.stdin is not None, "the front's input is a pipe"
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{self._refusal}\n".encode())
            self._process.stdin.flush()

    def _listen(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdout is not None, "the front's output is a pipe"
        for line in process.stdout:
            if process is self._process:
                self._beat = Beat(time.monotonic(), **json.loads(line))


def new_brief(settings: Settings, sockets: Path, models: Path) -> Brief:
    """What a front and a server are told together: a folder for sockets, and a secret id."""
    http_socket(sockets)
    return Brief(str(sockets), settings.grpc_port, secrets.token_hex(24), str(models))


@contextmanager
def running_front(settings: Settings, brief: Brief) -> Iterator[Front]:
    """A front that was started; gone after the block."""
    front = Front(settings, brief)
    try:
        yield front
    finally:
        front.end()


def model_environment(settings: Settings, brief: Brief) -> dict[str, str]:
    """The variables by which models know the server's own questions, that a front is there, and
    where it says which clients are gone.
    """
    codes = {CODES_VARIABLE: "on"} if settings.expose_triton == "off" else {}
    return {PROBE_VARIABLE: brief.probe_id, LEFT_VARIABLE: brief.sockets, **codes}
