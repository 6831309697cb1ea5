"""One tritonserver process: start it, wait until it is ready, stop it, leave nothing behind.

It listens on sockets in a folder of this user's, unless it is exposed. What nobody needs of it is
closed either way.
"""

import collections
import math
import os
import secrets
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from legokv.errors import ModelProcessLost, ServerDeaf, ServerError
from legokv.parent_death import end_with_parent
from legokv.serving.ending import failure_in, tell_ending
from legokv.serving.event_stream import FOLDER_VARIABLE
from legokv.serving.log import tell
from legokv.serving.secret import SECRET_VARIABLE, new_secret
from legokv.serving.settings import Settings
from legokv.serving.triton.install import (
    TritonInstall,
    find_triton,
    lay_out_backend,
    server_environment,
)
from legokv.serving.triton.log_lines import CollapsedLog, OwnLines
from legokv.serving.triton.processes import (
    ModelWatch,
    open_descriptors,
    server_folder,
    shared_memory_prefix,
)

EXIT_TIMEOUT_SECONDS = 10
_HELD_LINES = 200
_POLL_SECONDS = 0.1
_LOST_SECONDS = 1.0
"""From a model's loss to the server's end, so that answers of the other models get out."""
_REFUSED_SECONDS = 3.0
"""From a model's end while the server starts to when it is believed lost."""
_LOOK_SECONDS = 10.0
"""How often its descriptors are counted."""
_MANY_DESCRIPTORS = 0.5
"""The share of the limit past which a line says so."""
STOPPING = "the server is stopping and takes no new requests: ask another, or again in a while"
_SAID_SECONDS = 0.5
"""After so long a line says what is waited for."""
_ENDING_SECONDS = 3.0
"""So long an error that ends an answer may be under way to its client and its log."""
_CLOSED = "shared-memory,model-repository,statistics,trace,logging"
"""What nobody needs of Triton, and some can use to write into it or to hide."""


class Witness(Protocol):
    """Who asks the server as a client does."""

    def is_ready(self) -> bool:
        """Whether a question asked since `forget` was answered."""

    def forget(self) -> None:
        """A new server starts."""

    def refuse(self, sentence: str) -> None:
        """Refuse new requests with this sentence."""

    def num_open(self) -> int:
        """Requests that are under way."""

    def end(self) -> None:
        """Ask nothing any more, and let go of all connections."""

    def deaf_reason(self) -> str:
        """Why the server is to be started anew, "" if it is not."""


@dataclass(frozen=True)
class Place:
    """Where a server listens, a folder or, if None, the settings' ports, and what it is told."""

    sockets: Path | None
    variables: Mapping[str, str] = field(default_factory=dict)


class TritonServer:
    """A running server for the models of this package. Its log goes to standard error."""

    def __init__(
        self,
        settings: Settings,
        process: subprocess.Popen[bytes],
        witness: Witness,
        folder: Path,
    ) -> None:
        """`folder` is the one that the models know."""
        self.settings = settings
        self.stopping = False
        self._hurry = False
        self._was_ready = False
        self._folder = folder
        self._witness = witness
        witness.forget()
        self._looked = time.monotonic()
        self._process = process
        self._models = ModelWatch(process.pid)
        # Triton's own lines of its start: shown only if nobody says better why it failed.
        self._held: collections.deque[str] = collections.deque(maxlen=_HELD_LINES)
        self._log = threading.Thread(target=self._forward_log, name="triton-log", daemon=True)
        self._log.start()

    def wait_until_ready(self) -> None:
        """Return once every model answers, or at once when `stopping`.

        ServerError with the reason that a model told if the server ends or the settings' time is
        over; ModelProcessLost a few seconds after a model's process ended, for Triton may wait for
        ever. Where no model told a reason, Triton's lines are printed before.
        """
        limit = self.settings.ready_timeout_seconds
        deadline = time.monotonic() + limit
        while not self._witness.is_ready() and not self.stopping:
            self._check_start()
            if time.monotonic() > deadline:
                raise ServerError(self._why(f"the server was not ready after {limit} s"))
            time.sleep(_POLL_SECONDS)
        self._was_ready = not self.stopping
        self._models.look()

    def _check_start(self) -> None:
        ended = self._models.look()
        if ended:
            # A model that refuses to start has ended too: then Triton ends, and says why.
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_REFUSED_SECONDS)
        if self._process.poll() is not None:
            raise ServerError(self._why("the server ended while starting"))
        # Look again: a process that was nobody's model is gone by now, and Triton kills the others.
        lost = tuple(model for model in self._models.look() if model in ended)
        if lost:
            raise ModelProcessLost(
                self._why(self._killed_for(lost, "ended while the server started"))
            )

    def wait(self) -> None:
        """Return when the server has ended after a `stop`; ServerError if it ended by itself.

        ModelProcessLost soon after a model's process ended; the server is killed with it, for
        requests under way in the lost model would never end. Their clients see a lost connection.
        ServerDeaf if it answers no questions for the settings' time; it is killed too.
        """
        while self._process.poll() is None and not self.stopping:
            lost = self._models.lost()
            if lost:
                time.sleep(_LOST_SECONDS)
                raise ModelProcessLost(self._killed_for(lost, "ended by itself"))
            deaf = self._witness.deaf_reason()
            if deaf:
                self._kill()
                raise ServerDeaf(deaf)
            self._look_at_descriptors()
            time.sleep(_POLL_SECONDS)
        if not self.stopping:
            raise ServerError(f"the server ended with status {self._process.returncode}")

    def _killed_for(self, lost: tuple[str, ...], what: str) -> str:
        """Kill the server; the sentence that says for which models."""
        self._kill()
        return f"the process of model {' and '.join(lost)} {what}"

    def stop(self) -> None:
        """Have the server end, a second time without waiting; to be called by a signal too."""
        self._hurry = self.stopping
        self.stopping = True

    def end(self) -> None:
        """Let answers under way come to their end, end the others, then stop what is there.

        By force what does not stop within EXIT_TIMEOUT_SECONDS.
        """
        if self.stopping and self._was_ready:
            self._drain()
        if self.stopping:
            # Triton waits for connections that are open, its asker's own too.
            self._witness.end()
        self.stopping = True
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(EXIT_TIMEOUT_SECONDS + 2)
        except subprocess.TimeoutExpired:
            tell("the server did not stop in time and is killed")
        self._kill()
        self._process.wait()
        self._log.join()

    def _drain(self) -> None:
        """Refuse new requests, and wait for those under way as long as the settings say."""
        limit = self.settings.drain_seconds
        self._witness.refuse(STOPPING)
        self._wait_for_answers(limit, _SAID_SECONDS)
        left, exposed = self._witness.num_open(), self.settings.expose_triton == "on"
        why = f"the answer was not over after drain_seconds {limit}"
        if self._hurry:
            why = f"a second signal ended the answer before drain_seconds {limit} were over"
            tell(f"legokv: stopping at once: {left} requests under way are ended")
        # Also where none is open: documents are compiled that nobody waits for, and their claims
        # are given back.
        tell_ending(
            self._folder,
            f"the server stops, and {why}: ask again, another server or this one when it is back",
        )
        # Nobody counts the requests of an exposed one.
        if left or exposed:
            self._wait_for_answers(_ENDING_SECONDS, None)
            time.sleep(_LOST_SECONDS if exposed else 0)

    def _wait_for_answers(self, seconds: float, say_after: float | None) -> None:
        """Return when no request is under way, the time is over, or a second signal came."""
        began = time.monotonic()
        while self._witness.num_open() and self._process.poll() is None:
            waited = time.monotonic() - began
            if waited >= seconds or (self._hurry and say_after is not None):
                return
            if say_after is not None and waited >= say_after:
                say_after = math.inf
                tell(
                    f"legokv: stopping: {self._witness.num_open()} requests under way have "
                    f"{seconds:g} s (--drain-seconds); another signal ends them now"
                )
            time.sleep(_POLL_SECONDS)

    def _kill(self) -> None:
        # The model processes are in the server's group, and outlive a server that crashed.
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _look_at_descriptors(self) -> None:
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = time.monotonic()
        number, limit = open_descriptors(self._process.pid)
        if number > _MANY_DESCRIPTORS * limit:
            tell(f"legokv: Triton has {number} of {limit} descriptors open")

    def _forward_log(self) -> None:
        assert self._process.stdout is not None, "the server's output is a pipe"
        log, own = CollapsedLog(), OwnLines()
        for line in self._process.stdout:
            for text in log.shown(line.decode(errors="replace").strip(" \0\n")):
                if not self._was_ready and own.is_tritons(text):
                    self._held.append(text)
                else:
                    tell(text)

    def _why(self, sentence: str) -> str:
        """The sentence of a failed start, and a model's reason if one told it.

        Else Triton's own lines are shown first, so that the sentence stands last.
        """
        reason = failure_in(self._folder)
        if reason is not None:
            return f"{sentence}: {reason}"
        # The reader may be a few lines behind; of a server that ended it comes to an end.
        self._log.join(_POLL_SECONDS if self._process.poll() is None else _LOST_SECONDS)
        for line in list(self._held):
            tell(line)
        return sentence


@contextmanager
def running_server(settings: Settings, place: Place, witness: Witness) -> Iterator[TritonServer]:
    """A server that was started with `settings`, whose ports are chosen; gone after the block."""
    install = find_triton()
    with server_folder() as folder, shared_memory_prefix() as prefix:
        lay_out_backend(install, folder)
        command = [*_command(install, folder, prefix), *command_line(settings, place)]
        variables = {
            **settings.environment(),
            **place.variables,
            FOLDER_VARIABLE: str(folder),
            SECRET_VARIABLE: new_secret(),
        }
        environment = server_environment(install, {**os.environ, **variables})
        server = TritonServer(settings, _start(command, environment), witness, folder)
        try:
            yield server
        finally:
            server.end()


def _command(install: TritonInstall, backends: Path, shared_memory_prefix: str) -> list[str]:
    return [
        str(install.server),
        f"--model-repository={install.model_repository}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shared_memory_prefix}",
    ]


def command_line(settings: Settings, place: Place) -> list[str]:
    """Options of how it runs and where it listens; what lay there before it is gone."""
    # The value ends in a new line, which no header can carry: not even who reads it off this
    # command's line can send it.
    closed = f"{_CLOSED}:{secrets.token_hex(16)}={secrets.token_hex(32)}\n"
    return [
        f"--http-restricted-api={closed}",
        f"--grpc-restricted-protocol={closed}",
        "--disable-auto-complete-config",
        "--log-info=false",
        "--log-warning=false",
        f"--exit-timeout-secs={EXIT_TIMEOUT_SECONDS}",
        *_listening(settings, place),
    ]


def _listening(settings: Settings, place: Place) -> list[str]:
    options = []
    for name in ("http", "grpc", "metrics"):
        address, port = settings.host, getattr(settings, f"{name}_port")
        if place.sockets is not None:
            address = f"unix:{place.sockets / name}"
            for left in place.sockets.glob(f"{name}*"):
                left.unlink()
        options += [f"--{name}-address={address}", f"--{name}-port={port}"]
    return options


def _start(command: list[str], environment: dict[str, str]) -> subprocess.Popen[bytes]:
    # A session of its own: Ctrl-C in a terminal reaches the models only through `stop`, in order.
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=partial(end_with_parent, signal.SIGTERM),
    )
