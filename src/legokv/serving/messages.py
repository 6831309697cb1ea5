"""What passes between the generate and documents models and the engine model, as JSON. No tensors.

One command goes in, its events come back; an answer's come by a local socket. An error is an event
too: Triton does not carry an error's code from one model to another.
"""

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from legokv import errors
from legokv.engine.request import AnswerOptions, Finished, Token, Usage
from legokv.engine.sampling import SamplingOptions, TokenLogProbs
from legokv.errors import InvalidRequest, LegokvError

T = TypeVar("T")

WARM_TIERS = ("pool", "host", "disk")


@dataclass(frozen=True)
class PromptSegment:
    """One piece of a prompt: fresh tokens, or a chunk by its `key`.

    A chunk's token ids are empty where the engine is believed to know them; `persistent` chunks go
    to disk. It is compiled `behind` the chunk of that key, which the command lists before it. One
    that is not `in_prompt` is listed for that alone.
    """

    token_ids: Sequence[int] = ()
    key: str | None = None
    persistent: bool = True
    behind: str | None = None
    in_prompt: bool = True


@dataclass(frozen=True)
class Generate:
    """Begin to answer a prompt: one Done, or an Unknown and nothing was begun.

    Tokens, and a Finished or Failed the last, go to the socket at `reply_to` as `request_id`'s.
    """

    request_id: str
    reply_to: str
    namespace: str
    segments: tuple[PromptSegment, ...]
    max_tokens: int
    mode: str
    link_tokens: int | None
    sampling: SamplingOptions
    stop_words: tuple[str, ...] = ()
    answering: AnswerOptions = field(default_factory=AnswerOptions)
    recompute_percent: float | None = None


@dataclass(frozen=True)
class Compile:
    """Compile the last of `segments` behind the others and keep it: one Compiled, or an Unknown."""

    namespace: str
    segments: tuple[PromptSegment, ...]


@dataclass(frozen=True)
class Warm:
    """Have the last of `segments` in `tier` or a faster one: one Done, or an Unknown.

    If no tier has it, it is compiled behind the others.
    """

    namespace: str
    segments: tuple[PromptSegment, ...]
    tier: str


@dataclass(frozen=True)
class Rank:
    """Have the last of `segments` ranked and keep that: one Done, or an Unknown."""

    namespace: str
    segments: tuple[PromptSegment, ...]


@dataclass(frozen=True)
class Drop:
    """Forget chunks in every tier: one Done."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Find:
    """Say in which tier each chunk is: one Places."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Cancel:
    """End a Generate, if it is under way, without further events: one Done."""

    request_id: str


@dataclass(frozen=True)
class Probe:
    """Say whether steps are computed: one Done."""


Command = Generate | Compile | Warm | Rank | Drop | Find | Cancel | Probe
WithSegments = TypeVar("WithSegments", Generate, Compile, Warm, Rank)


@dataclass(frozen=True)
class Unknown:
    """Chunks whose token ids the engine does not know: to be asked again with them."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Compiled:
    """The key of a chunk that is kept now."""

    key: str


@dataclass(frozen=True)
class Places:
    """The fastest tier of each chunk that was asked for, "" for one that is in none."""

    tiers: tuple[str, ...]


@dataclass(frozen=True)
class Done:
    """A command without a result was carried out."""


@dataclass(frozen=True)
class Failed:
    """A command ended with an error; `kind` is its class's name, `keys` the chunks it is about."""

    kind: str
    message: str
    keys: tuple[str, ...] = ()


Event = Token | Finished | Unknown | Compiled | Places | Done | Failed


def with_ids_of(command: WithSegments, keys: Collection[str]) -> WithSegments:
    """The command with the token ids of these chunks; all others are named by key alone."""
    segments = tuple(
        piece if piece.key is None or piece.key in keys else replace(piece, token_ids=())
        for piece in command.segments
    )
    return replace(command, segments=segments)


def encode_command(command: Command) -> bytes:
    """The command as JSON in UTF-8."""
    return _json(_tagged(command))


def encode_events(events: Sequence[Event]) -> bytes:
    """The events as JSON in UTF-8."""
    return _json([_tagged(event) for event in events])


def decode_events(body: bytes) -> tuple[Event, ...]:
    """The events in `body`; InvalidRequest if it is anything else."""
    return _decoded(lambda: tuple(_made(item, _EVENTS) for item in json.loads(body)), "events")


def encode_line(request_id: str, event: Event) -> bytes:
    """An event of one request's as a line of JSON."""
    return _json([request_id, _tagged(event)]) + b"\n"


def decode_line(line: bytes) -> tuple[str, Event]:
    """The request and its event in a line; InvalidRequest if it is anything else."""

    def both() -> tuple[str, Event]:
        request_id, fields = json.loads(line)
        return request_id, _made(fields, _EVENTS)

    return _decoded(both, "a line with an event")


def failed(error: LegokvError) -> Failed:
    """The event that carries an error to another process."""
    keys = error.keys if isinstance(error, errors.RankingMissing) else ()
    return Failed(type(error).__name__, str(error), keys)


def error_of(event: Failed) -> LegokvError:
    """The error that `failed` was given, of its own class if that is one of `legokv.errors`."""
    kind = getattr(errors, event.kind, None)
    if kind is errors.RankingMissing:
        return errors.RankingMissing(event.message, event.keys)
    if isinstance(kind, type) and issubclass(kind, LegokvError):
        return kind(event.message)
    return LegokvError(f"{event.kind}: {event.message}")


def _tagged(message: Command | Event) -> dict[str, Any]:
    return {"type": type(message).__name__, **vars(message)}


def _json(value: object) -> bytes:
    # `vars` for the dataclasses inside: `asdict` copies every token id of a prompt, 4 ms for 4,000.
    return json.dumps(
        value, ensure_ascii=False, separators=(",", ":"), default=vars, allow_nan=False
    ).encode()


def _decoded(decode: Callable[[], T], noun: str) -> T:
    try:
        return decode()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"not {noun}: {type(error).__name__}: {error}") from None


def _made(fields: dict[str, Any], makers: dict[str, Callable[[dict[str, Any]], T]]) -> T:
    return makers[fields.pop("type")](fields)


def _token(fields: dict[str, Any]) -> Token:
    log_probs = fields.pop("log_probs")
    if log_probs is None:
        return Token(**fields)
    top = tuple((token_id, log_prob) for token_id, log_prob in log_probs["top"])
    return Token(**fields, log_probs=TokenLogProbs(log_probs["log_prob"], top))


_EVENTS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "Token": _token,
    "Finished": lambda fields: Finished(fields["finish_reason"], Usage(**fields["usage"])),
    "Unknown": lambda fields: Unknown(tuple(fields["keys"])),
    "Compiled": lambda fields: Compiled(**fields),
    "Places": lambda fields: Places(tuple(fields["tiers"])),
    "Done": lambda fields: Done(**fields),
    "Failed": lambda fields: Failed(**{**fields, "keys": tuple(fields.get("keys", ()))}),
}


AskEngine = Callable[[Command], tuple[Event, ...]]
"""Gives the events that answer a command and raises the error among them."""


def ask_by_keys(ask_engine: AskEngine, command: WithSegments, unknown: set[str]) -> Event:
    """The one event that answers a command, which has the ids of all its chunks.

    Ids go along only of chunks that the engine does not know. `unknown`: their keys, as believed.
    """
    (event,) = ask_engine(with_ids_of(command, unknown))
    while isinstance(event, Unknown):
        unknown |= set(event.keys)
        (event,) = ask_engine(with_ids_of(command, unknown))
    return event
