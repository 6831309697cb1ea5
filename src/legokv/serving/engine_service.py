"""The engine process: one thread that computes, and the commands of all others beside it."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from legokv.documents.registry import Registry
from legokv.engine import Engine
from legokv.engine_folder import read_engine_folder
from legokv.errors import LegokvError
from legokv.jobs import Job
from legokv.request import Finished, GenerateRequest, Token
from legokv.serving.answering import Reply
from legokv.serving.messages import (
    Answered,
    Cancel,
    Compile,
    Compiled,
    Done,
    Drop,
    Event,
    Generate,
    Piece,
    decode_command,
    encode,
    failed,
)
from legokv.serving.settings import Settings

log = logging.getLogger(__name__)


class EngineService:
    """Carries out commands from any thread while its own one runs the engine's steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._live: dict[object, Job] = {}
        self._wake = threading.Event()
        self._stopping = False
        self._scheduler = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._scheduler.start()

    @classmethod
    def open(cls, settings: Settings) -> "EngineService":
        """Load the settings' engine; chunks of pinned documents stay in its pool."""
        registry = Registry.open(settings.registry_path(read_engine_folder(settings.engine)))
        engine = Engine.open(
            settings.engine,
            dtype=None if settings.dtype == "auto" else settings.dtype,
            pool_tokens=settings.pool_tokens,
            max_step_tokens=settings.max_step_tokens,
            num_threads=settings.num_threads or None,
            cache_dir=settings.cache_dir,
            pinned_keys=registry.pinned_chunk_keys,
        )
        return cls(engine)

    def close(self) -> None:
        """Stop computing; what is under way stays unfinished."""
        self._stopping = True
        self._wake.set()
        self._scheduler.join()

    def replies(self, body: bytes) -> Iterator[Reply]:
        """`events` from and to JSON; a refusal or failure is the last event, not an exception."""
        try:
            for event in self.events(body):
                yield Reply({"event": encode(event)}, final=not isinstance(event, Piece))
        except LegokvError as error:
            yield Reply({"event": encode(failed(error))}, final=True)

    def events(self, body: bytes) -> Iterator[Event]:
        """The events that answer one command; raises the error that ends it."""
        command = decode_command(body)
        if isinstance(command, Generate):
            yield from self._generate(command)
        elif isinstance(command, Compile):
            yield self._compile(command)
        elif isinstance(command, Cancel):
            yield self._cancel(command.request_id)
        else:
            yield self._drop(command)

    def _generate(self, command: Generate) -> Iterator[Event]:
        job = self._engine.submit(self._request(command))
        with self._running(command.request_id, job):
            while True:
                event = job.events.get()
                if isinstance(event, LegokvError):
                    raise event
                if isinstance(event, Finished):
                    yield Answered(event.finish_reason, event.usage)
                    return
                assert isinstance(event, Token), "an answer is Tokens and a Finished"
                yield Piece(event.text, (event.id,))

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
        )

    def _compile(self, command: Compile) -> Event:
        chunk = self._engine.chunk(command.token_ids, command.namespace)
        job = self._engine.submit_compile(chunk)
        with self._running(object(), job):
            event = job.events.get()
        if isinstance(event, LegokvError):
            raise event
        return Compiled(chunk.key)

    def _cancel(self, request_id: str) -> Event:
        job = self._live.get(request_id)
        if job is not None:
            self._engine.cancel(job)
            self._wake.set()
        return Done(found=job is not None)

    def _drop(self, command: Drop) -> Event:
        for key in command.keys:
            self._engine.drop(key)
        return Done()

    @contextmanager
    def _running(self, name: object, job: Job) -> Iterator[None]:
        """The job as a live one for the length of the block; cancelled if that is left early."""
        self._live[name] = job
        self._wake.set()
        try:
            yield
        finally:
            del self._live[name]
            self._engine.cancel(job)

    def _run(self) -> None:
        while not self._stopping:
            try:
                busy = self._engine.step()
            except Exception as error:
                # The thread's boundary: without it a fault of ours would leave every request
                # waiting for ever. The jobs at hand are lost, the next ones are tried.
                log.exception("a step failed")
                self._fail_all(LegokvError(f"a step failed: {type(error).__name__}: {error}"))
                busy = False
            if not busy:
                self._wake.wait()
                self._wake.clear()

    def _fail_all(self, error: LegokvError) -> None:
        for job in list(self._live.values()):
            self._engine.cancel(job)
            job.events.put(error)
        self._wake.set()
