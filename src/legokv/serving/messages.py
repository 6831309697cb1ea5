"""What passes between the generate and documents models and the engine model, as JSON. No tensors.

One command goes in; events come back until one that ends it. An error is an event too: Triton
does not carry an error's code from one model to another.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from legokv import errors
from legokv.errors import InvalidRequest, LegokvError
from legokv.request import Usage
from legokv.sample import SamplingOptions

T = TypeVar("T")


@dataclass(frozen=True)
class PromptSegment:
    """Tokens of one piece of a prompt. `cached` ones are a chunk, `persistent` chunks go to disk.

    A chunk comes as its token ids, so that the engine can compile one again that it lost.
    """

    token_ids: Sequence[int]
    cached: bool = True
    persistent: bool = True


@dataclass(frozen=True)
class Generate:
    """Answer a prompt: Pieces, then an Answered."""

    request_id: str
    namespace: str
    segments: tuple[PromptSegment, ...]
    max_tokens: int
    mode: str
    link_tokens: int
    sampling: SamplingOptions
    stop_words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Compile:
    """Compile a chunk and keep it: one Compiled."""

    namespace: str
    token_ids: Sequence[int]


@dataclass(frozen=True)
class Drop:
    """Forget chunks in every tier: one Done."""

    keys: tuple[str, ...]


@dataclass(frozen=True)
class Cancel:
    """End a Generate: one Done, `found` false if none of that id is running."""

    request_id: str


Command = Generate | Compile | Drop | Cancel


@dataclass(frozen=True)
class Piece:
    """Tokens as they are drawn and the text that became certain with them, which may be empty."""

    text: str
    token_ids: tuple[int, ...]


@dataclass(frozen=True)
class Answered:
    """The end of an answer: "stop" or "length", and what it took."""

    finish_reason: str
    usage: Usage


@dataclass(frozen=True)
class Compiled:
    """The key of a chunk that is kept now."""

    key: str


@dataclass(frozen=True)
class Done:
    """A command without a result was carried out."""

    found: bool = True


@dataclass(frozen=True)
class Failed:
    """A command ended with an error; `kind` is the name of its class."""

    kind: str
    message: str


Event = Piece | Answered | Compiled | Done | Failed


def encode(message: Command | Event) -> bytes:
    """The message as JSON in UTF-8."""
    body = {"type": type(message).__name__, **asdict(message)}
    return json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()


def decode_command(body: bytes) -> Command:
    """The command in `body`; InvalidRequest if there is none."""
    return _decode(body, _COMMANDS)


def decode_event(body: bytes) -> Event:
    """The event in `body`; InvalidRequest if there is none."""
    return _decode(body, _EVENTS)


def failed(error: LegokvError) -> Failed:
    """The event that carries an error to another process."""
    return Failed(type(error).__name__, str(error))


def error_of(event: Failed) -> LegokvError:
    """The error that `failed` was given, of its own class if that is one of `legokv.errors`."""
    kind = getattr(errors, event.kind, None)
    if isinstance(kind, type) and issubclass(kind, LegokvError):
        return kind(event.message)
    return LegokvError(f"{event.kind}: {event.message}")


def _decode(body: bytes, makers: dict[str, Callable[[dict[str, Any]], T]]) -> T:
    try:
        fields = json.loads(body)
        return makers[fields.pop("type")](fields)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(
            f"not a message of {', '.join(makers)}: {type(error).__name__}: {error}"
        ) from None


def _generate(fields: dict[str, Any]) -> Generate:
    segments = tuple(PromptSegment(**segment) for segment in fields.pop("segments"))
    sampling = SamplingOptions(**fields.pop("sampling"))
    stop_words = tuple(fields.pop("stop_words"))
    return Generate(**fields, segments=segments, sampling=sampling, stop_words=stop_words)


_COMMANDS: dict[str, Callable[[dict[str, Any]], Command]] = {
    "Generate": _generate,
    "Compile": lambda fields: Compile(**fields),
    "Drop": lambda fields: Drop(tuple(fields["keys"])),
    "Cancel": lambda fields: Cancel(**fields),
}
_EVENTS: dict[str, Callable[[dict[str, Any]], Event]] = {
    "Piece": lambda fields: Piece(fields["text"], tuple(fields["token_ids"])),
    "Answered": lambda fields: Answered(fields["finish_reason"], Usage(**fields["usage"])),
    "Compiled": lambda fields: Compiled(**fields),
    "Done": lambda fields: Done(**fields),
    "Failed": lambda fields: Failed(**fields),
}
