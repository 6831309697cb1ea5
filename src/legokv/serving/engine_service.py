"""The engine process: one thread that computes, and the commands of all others beside it."""

import logging
import os
import queue
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from legokv.built.folder import read_engine_folder
from legokv.built.gate_facts import check_gate
from legokv.engine.engine import Engine, begin_warming
from legokv.engine.jobs import Event as JobEvent
from legokv.engine.jobs import Job
from legokv.engine.request import Finished, GenerateRequest, Token
from legokv.errors import LegokvError, NotFound
from legokv.metrics import Sample
from legokv.serving.answering import Reply
from legokv.serving.messages import (
    Answered,
    Cancel,
    Command,
    Compile,
    Compiled,
    Done,
    Drop,
    Event,
    Generate,
    Next,
    Piece,
    Warm,
    decode_command,
    encode_events,
    failed,
)
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry

WAIT_SECONDS = 0.25
"""How long a command waits for a first event. A client that went away is noticed in between."""
ABANDONED_SECONDS = 30.0
"""After this long without a Next, whoever asked is believed dead."""
COMPUTE_NICENESS = 10
_SWITCH_SECONDS = 0.0005

log = logging.getLogger(__name__)


@dataclass
class _Live:
    """A job somebody waits for, and when its events were last asked for."""

    job: Job
    asked_at: float = field(default_factory=time.monotonic)


class EngineService:
    """Carries out commands from any thread while its own one runs the engine's steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[str, _Live] = {}
        self._wake = threading.Event()
        self._stopping = False
        # Python's 5 ms would be the time a first token waits while the next step is prepared.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._scheduler = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._scheduler.start()

    @classmethod
    def open(cls, settings: Settings) -> "EngineService":
        """Load the settings' engine; chunks of pinned documents stay in its pool.

        EngineMismatch, with the numbers, unless linking was found correct when it was built.
        """
        facts = read_engine_folder(settings.engine)
        check_gate(facts.gate, str(settings.engine))
        registry = open_registry(settings.registry_path(facts), settings.shared_cache(facts))
        engine = Engine.open_with(
            settings.engine, settings.engine_settings, registry.pinned_chunk_keys
        )
        return cls(engine)

    def samples(self) -> Iterator[Sample]:
        """The engine's numbers now; for any thread."""
        return self._engine.samples()

    def close(self) -> None:
        """Stop computing; what is under way stays unfinished."""
        self._stopping = True
        self._wake.set()
        self._scheduler.join()

    def replies(self, body: bytes) -> Iterator[Reply]:
        """The one reply to a command, both JSON; an error is an event in it."""
        try:
            events = self.events(decode_command(body))
        except LegokvError as error:
            events = [failed(error)]
        yield Reply({"events": encode_events(events)}, final=True)

    def events(self, command: Command) -> list[Event]:
        """The events that answer one command; raises the error that ends it."""
        if isinstance(command, Generate):
            self._begin(command.request_id, self._engine.submit(self._request(command)))
            return self._next(command.request_id)
        if isinstance(command, Next):
            return self._next(command.request_id)
        if isinstance(command, Compile):
            return [self._compile(command)]
        if isinstance(command, Warm):
            return [self._warm(command)]
        if isinstance(command, Cancel):
            self._end(command.request_id)
        else:
            self._drop(command)
        return [Done()]

    def _request(self, command: Generate) -> GenerateRequest:
        segments = [
            self._engine.chunk(piece.token_ids, command.namespace, persistent=piece.persistent)
            if piece.cached
            else tuple(piece.token_ids)
            for piece in command.segments
        ]
        return GenerateRequest(
            segments,
            command.max_tokens,
            command.mode,
            command.link_tokens,
            command.sampling,
            command.stop_words,
            command.answering,
        )

    def _begin(self, name: str, job: Job) -> None:
        self._live[name] = _Live(job)
        self._wake.set()

    def _end(self, name: str) -> None:
        """Forget a job, cancelled unless it is over."""
        live = self._live.pop(name, None)
        if live is not None:
            self._engine.cancel(live.job)
            self._wake.set()

    def _next(self, request_id: str) -> list[Event]:
        live = self._live.get(request_id)
        if live is None:
            raise NotFound(f"no request {request_id[:80]!r} is under way")
        live.asked_at = time.monotonic()
        events: list[Event] = []
        for happened in _taken(live.job):
            if isinstance(happened, LegokvError):
                self._end(request_id)
                raise happened
            if isinstance(happened, Finished):
                self._end(request_id)
                events.append(Answered(happened.finish_reason, happened.usage))
            else:
                assert isinstance(happened, Token), "an answer is Tokens and a Finished"
                events.append(_piece(happened))
        return events

    def _compile(self, command: Compile) -> Event:
        chunk = self._engine.chunk(command.token_ids, command.namespace)
        self._finish(self._engine.submit_compile(chunk))
        return Compiled(chunk.key)

    def _warm(self, command: Warm) -> Event:
        chunk = self._engine.chunk(command.token_ids, command.namespace)
        job = begin_warming(self._engine, chunk, command.tier)
        if job is not None:
            self._finish(job)
        return Done()

    def _finish(self, job: Job) -> None:
        """Return when a job of one event is over; raises its error."""
        name = f"job {id(job)}"
        self._begin(name, job)
        try:
            while not (happened := list(_taken(job))):
                self._live[name].asked_at = time.monotonic()
        finally:
            self._end(name)
        if isinstance(happened[0], LegokvError):
            raise happened[0]

    def _drop(self, command: Drop) -> None:
        for key in command.keys:
            self._engine.drop(key)

    def _run(self) -> None:
        if self._engine.runner.device.type == "cpu":
            _give_way()
        while not self._stopping:
            try:
                busy = self._engine.step()
            except Exception as error:
                # The thread's boundary: without it a fault of ours would leave every request
                # waiting for ever. The jobs at hand are lost, the next ones are tried.
                log.exception("a step failed")
                self._fail_all(LegokvError(f"a step failed: {type(error).__name__}: {error}"))
                busy = False
            self._end_abandoned()
            if not busy:
                self._wake.wait(ABANDONED_SECONDS)
                self._wake.clear()

    def _end_abandoned(self) -> None:
        before = time.monotonic() - ABANDONED_SECONDS
        for name, live in list(self._live.items()):
            if live.asked_at < before:
                log.warning("nobody asked for %s any more; it is cancelled", name)
                self._end(name)

    def _fail_all(self, error: LegokvError) -> None:
        for live in list(self._live.values()):
            self._engine.cancel(live.job)
            live.job.events.put(error)


def _piece(token: Token) -> Piece:
    return Piece(token.text, token.id, token.sequence_index, token.finish_reason, token.log_probs)


def _give_way() -> None:
    """Let threads that carry requests and replies go before this one and those it computes with.

    They need little, and on a machine whose every core computes each hop of a token would wait for
    one. Linux counts niceness by thread, and OpenMP's threads have their starter's. A server that
    was started nicer stays so: to be less nice again takes privileges.
    """
    thread = threading.get_native_id()
    nice = max(COMPUTE_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
    os.setpriority(os.PRIO_PROCESS, thread, nice)


def _taken(job: Job) -> Iterator[JobEvent]:
    """What happened since it was last asked, waiting WAIT_SECONDS for the first."""
    try:
        yield job.events.get(timeout=WAIT_SECONDS)
        while True:
            yield job.events.get_nowait()
    except queue.Empty:
        return
