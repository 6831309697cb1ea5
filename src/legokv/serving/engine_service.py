"""The engine process: one thread that computes, and the commands of all others beside it."""

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from legokv.built.folder import read_engine_folder
from legokv.built.gate_facts import check_gate
from legokv.chunks.chunk import Chunk
from legokv.engine.engine import Engine
from legokv.engine.jobs import Job, JobEvent, Prefill
from legokv.engine.naming import NamedChunks
from legokv.engine.request import GenerateRequest, Token
from legokv.errors import EngineGone, InvalidRequest, LegokvError, StepFailed
from legokv.link.link import Segment
from legokv.metrics import Sample
from legokv.serving.answering import Reply
from legokv.serving.command_reading import decode_command
from legokv.serving.ending import EndingWatch
from legokv.serving.event_stream import FOLDER_VARIABLE, EventOutlet
from legokv.serving.messages import (
    Cancel,
    Command,
    Compile,
    Compiled,
    Done,
    Drop,
    Event,
    Find,
    Generate,
    Places,
    Probe,
    PromptSegment,
    Rank,
    Unknown,
    Warm,
    encode_events,
    failed,
)
from legokv.serving.settings import Settings
from legokv.stores.opening import open_registry
from legokv.stores.pins import LatestPins

COMPUTE_NICENESS = 10
MAX_NAMED_TOKENS = 1 << 21
"""Token ids of chunks that are kept by key, the least recently named gone first."""
MAX_STEP_SECONDS = 900.0
"""A step that lasts longer is believed never to end: the longest, of a large model on a few cores,
takes minutes."""
_IDLE_SECONDS = 30.0
_DROPPED_SECONDS, _CLOSING_SECONDS = 10.0, 2.0
_SWITCH_SECONDS = 0.0005

log = logging.getLogger(__name__)


class EngineService:
    """Carries out commands from any thread while its own one runs the engine's steps."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._named = NamedChunks(MAX_NAMED_TOKENS)
        self._live: dict[str, Job] = {}
        self._outlets: dict[str, EventOutlet] = {}
        self._connecting = threading.Lock()
        self._wake = threading.Event()
        self._stopping = False
        self._ended: EngineGone | None = None
        self._step_began = 0.0
        # Python's 5 ms would be the time a first token waits while the next step is prepared.
        sys.setswitchinterval(_SWITCH_SECONDS)
        self._scheduler = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._scheduler.start()

    @classmethod
    def open(cls, settings: Settings) -> "EngineService":
        """Load the settings' engine; chunks of pinned documents stay in its pool.

        EngineMismatch, with the numbers, unless linking was found correct when it was built;
        InvalidRequest for a usual mode in which its runner can't answer.
        """
        facts = read_engine_folder(settings.engine)
        check_gate(facts.gate, str(settings.engine))
        registry = open_registry(settings.registry_path(facts), settings.shared_cache(facts))
        pinned = LatestPins(registry.pinned_chunk_keys)
        engine = Engine.open(
            settings.engine, settings=settings, pinned_keys=pinned, write_behind=True
        )
        engine.check_mode(settings.default_mode, "default_mode")
        service = cls(engine)
        folder = os.environ.get(FOLDER_VARIABLE)
        if folder is not None:
            EndingWatch(Path(folder), service.end_all)
        return service

    def samples(self) -> Iterator[Sample]:
        """The engine's numbers now; for any thread."""
        return self._engine.samples()

    def end_all(self, sentence: str) -> None:
        """End all that is under way with this sentence, and whatever is asked from now on."""
        self._ended = EngineGone(sentence)
        for job in list(self._live.values()):
            self._engine.cancel(job)
            job.events.put(self._ended)
        self._wake.set()

    def close(self) -> None:
        """Stop computing; what is under way stays unfinished."""
        self._stopping = True
        self._wake.set()
        self._scheduler.join()
        self._engine.tiers.flush(_CLOSING_SECONDS)

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
            return [self._generate(command)]
        if isinstance(command, Compile):
            return [self._compile(command)]
        if isinstance(command, Warm):
            return [self._warm(command)]
        if isinstance(command, Find):
            return [Places(tuple(map(self._engine.tier_of, command.keys)))]
        if isinstance(command, Rank):
            return [self._rank(command)]
        if isinstance(command, Probe):
            self._check_steps()
        elif isinstance(command, Cancel):
            self._cancel(command.request_id)
        else:
            self._drop(command)
        return [Done()]

    def _check_steps(self) -> None:
        """StepFailed if the thread that computes is gone, or one step has no end."""
        began = self._step_began
        if not self._scheduler.is_alive():
            raise self._engine.lost or StepFailed("the thread that computes has ended")
        if began and time.monotonic() - began > MAX_STEP_SECONDS:
            raise StepFailed(f"one step has lasted longer than {MAX_STEP_SECONDS:g} s")

    def _generate(self, command: Generate) -> Event:
        chunks = self._chunks_of(command)
        if isinstance(chunks, Unknown):
            return chunks
        self._begin(command, chunks)
        self._learn(command, chunks)
        return Done()

    def _learn(
        self, command: Generate | Compile | Warm | Rank, chunks: Mapping[str, Chunk]
    ) -> None:
        """Know the chunks whose ids came with a command by their keys, once it was taken.

        Not before: what is refused must not push out what others name.
        """
        for piece in command.segments:
            if piece.key is not None and len(piece.token_ids):
                self._named.put(chunks[piece.key])

    def _chunks_of(self, command: Generate | Compile | Warm | Rank) -> dict[str, Chunk] | Unknown:
        """All chunks of a command by key; Unknown if ids are missing of one that is not known."""
        keyed = {p.key: p for p in command.segments if p.key is not None}
        asked = [key for key, piece in keyed.items() if not len(piece.token_ids)]
        chunks = self._named.find(asked, command.namespace)
        unknown = [key for key in asked if key not in chunks]
        if unknown:
            return Unknown(tuple(unknown))
        for key, piece in keyed.items():
            if len(piece.token_ids):
                chunks[key] = self._checked(key, piece, command.namespace, chunks)
        return chunks

    def _checked(
        self, key: str, piece: PromptSegment, namespace: str, chunks: Mapping[str, Chunk]
    ) -> Chunk:
        """The chunk of a piece's ids; InvalidRequest for another key, and for one behind a chunk
        that is not listed before it.
        """
        if piece.behind is not None and piece.behind not in chunks:
            raise InvalidRequest(
                f"chunk {key[:12]} is behind {piece.behind[:12]}, which is not listed before it"
            )
        behind = () if piece.behind is None else chunks[piece.behind]
        chunk = self._engine.chunk(
            piece.token_ids, namespace, behind=behind, persistent=piece.persistent
        )
        if chunk.key != key:
            raise InvalidRequest(
                f"these {chunk.num_tokens} tokens are chunk {chunk.key[:12]} of this engine, not "
                f"{key[:12]}: whoever named it has other settings"
            )
        return chunk

    def _begin(self, command: Generate, chunks: Mapping[str, Chunk]) -> None:
        request = GenerateRequest(
            [_segment(piece, chunks) for piece in command.segments if piece.in_prompt],
            command.max_tokens,
            command.mode,
            command.link_tokens,
            command.sampling,
            command.stop_words,
            command.answering,
            command.recompute_percent,
            command.namespace,
        )
        sink = _Sink(self, command.request_id, self._outlet(command.reply_to))
        job = self._engine.submit(request, sink)
        self._live[command.request_id] = job
        self._end_if_late(job)
        if sink.ended:  # before it was noted as live
            self.over(command.request_id)
        self._wake.set()

    def _outlet(self, address: str) -> EventOutlet:
        with self._connecting:
            if address not in self._outlets:
                self._outlets[address] = EventOutlet(address, lambda: self._lose(address))
            return self._outlets[address]

    def _lose(self, address: str) -> None:
        """Nobody listens there any more: cancel all that was for it."""
        outlet = self._outlets.pop(address, None)
        for request_id, job in list(self._live.items()):
            if isinstance(job.events, _Sink) and job.events.outlet is outlet:
                log.warning("nobody waits for %r any more; it is cancelled", request_id)
                self._cancel(request_id)

    def _cancel(self, request_id: str) -> None:
        """Forget a job, which ends with the next step unless it is over."""
        job = self._live.pop(request_id, None)
        if job is not None:
            self._engine.cancel(job)
            self._wake.set()

    def _compile(self, command: Compile) -> Event:
        chunks = self._chunks_of(command)
        if isinstance(chunks, Unknown):
            return chunks
        chunk = _chunk_of(command.segments[-1], chunks)
        self._finish(self._engine.submit_compile(chunk))
        # Its asker waits until it is on disk, so only as many wait to be written as are asked for.
        self._engine.tiers.flush()
        self._learn(command, chunks)
        return Compiled(chunk.key)

    def _warm(self, command: Warm) -> Event:
        chunks = self._chunks_of(command)
        if isinstance(chunks, Unknown):
            return chunks
        job = self._engine.warm(_chunk_of(command.segments[-1], chunks), command.tier)
        if job is not None:
            self._finish(job)
        self._learn(command, chunks)
        return Done()

    def _rank(self, command: Rank) -> Event:
        chunks = self._chunks_of(command)
        if isinstance(chunks, Unknown):
            return chunks
        self._finish(self._engine.submit_rank(chunks[str(command.segments[-1].key)]))
        self._engine.tiers.flush()
        self._learn(command, chunks)
        return Done()

    def _end_if_late(self, job: Job) -> None:
        if self._ended is not None:
            self._engine.cancel(job)
            job.events.put(self._ended)

    def _finish(self, job: Job) -> None:
        """Return when a job of one event is over; raises its error."""
        name = f"job {id(job)}"
        self._live[name] = job
        self._end_if_late(job)
        self._wake.set()
        try:
            event = job.queue.get()
        finally:
            self._live.pop(name, None)
        if isinstance(event, LegokvError):
            raise event

    def _drop(self, command: Drop) -> None:
        for key in command.keys:
            self._named.forget(key)
            self._engine.drop(key)
        self._engine.tiers.flush(_DROPPED_SECONDS)

    def _run(self) -> None:
        if self._engine.runner.device.type == "cpu":
            _give_way()
        while not self._stopping:
            self._step_began = time.monotonic()
            try:
                busy = self._engine.step()
            except Exception as error:
                # The thread's boundary. The executor answers for errors of the runner, the tiers
                # and single requests; without this one, a fault of its own would leave every
                # request waiting for ever. The jobs at hand are lost, the next ones are tried.
                log.exception("a step failed")
                self._engine.executor.metrics.step_failed("engine")
                self._fail_all(StepFailed(f"a step failed: {type(error).__name__}: {error}"))
                busy = False
            self._step_began = 0.0
            if self._engine.lost:
                # The supervisor's probe hears of it and starts the server anew.
                self.end_all(str(self._engine.lost))
                return
            if not busy:
                self._wake.wait(_IDLE_SECONDS)
                self._wake.clear()

    def _fail_all(self, error: LegokvError) -> None:
        for job in list(self._live.values()):
            self._engine.cancel(job)
            job.events.put(error)

    def over(self, request_id: str) -> None:
        """A request's last event was sent."""
        self._live.pop(request_id, None)


class _Sink:
    """Where one request's events go: to its asker's inbox, until the last."""

    def __init__(self, service: EngineService, request_id: str, outlet: EventOutlet) -> None:
        self.outlet = outlet
        self.ended = False
        self._service = service
        self._request_id = request_id

    def put(self, event: JobEvent) -> None:
        if self.ended:
            return
        assert not isinstance(event, Prefill), "a served request is answered with tokens"
        sent = failed(event) if isinstance(event, LegokvError) else event
        if not isinstance(sent, Token):
            self.ended = True
            self._service.over(self._request_id)
        self.outlet.send(self._request_id, sent)


def _segment(piece: PromptSegment, chunks: Mapping[str, Chunk]) -> Segment:
    return tuple(piece.token_ids) if piece.key is None else _chunk_of(piece, chunks)


def _chunk_of(piece: PromptSegment, chunks: Mapping[str, Chunk]) -> Chunk:
    return replace(chunks[str(piece.key)], persistent=piece.persistent)


def _give_way() -> None:
    """Let threads that carry requests and replies go before this one and those it computes with.

    They need little, and on a machine whose every core computes each hop of a token would wait for
    one. Linux counts niceness by thread, and OpenMP's threads have their starter's. A server that
    was started nicer stays so: to be less nice again takes privileges.
    """
    thread = threading.get_native_id()
    nice = max(COMPUTE_NICENESS, os.getpriority(os.PRIO_PROCESS, thread))
    os.setpriority(os.PRIO_PROCESS, thread, nice)
