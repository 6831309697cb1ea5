"""Errors a caller can act on, each with the status code a server reports for it."""

import struct
from collections.abc import Sequence
from typing import ClassVar, Literal

LONGEST_LINE = 1200
"""Characters of an error's line as `sentence_of` gives it."""


class LegokvError(Exception):
    """Root of all errors raised on purpose; `code` is the Triton status it maps to."""

    code: ClassVar[str] = "INTERNAL"


class InvalidRequest(LegokvError):
    """The request can never succeed as it is: a value is wrong or out of range."""

    code = "INVALID_ARG"


class RequestTooLarge(InvalidRequest):
    """A request that is longer than the server takes."""


class PathClosed(LegokvError):
    """A path of Triton's that clients do not reach; `status` is HTTP's."""

    code = "NOT_FOUND"

    def __init__(self, message: str, status: int = 404) -> None:
        super().__init__(message)
        self.status = status


class HttpRefused(LegokvError):
    """A connection that ends with this status, for what it sends breaks a bound or is no HTTP."""

    code = "INVALID_ARG"

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


class ApiRefused(InvalidRequest):
    """What the gateway refuses with this HTTP status; `param` names the field, `kind` the reason.

    The two stand in the error objects of OpenAI's API, which calls the reason a code.
    """

    def __init__(
        self, message: str, status: int = 400, param: str | None = None, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.kind = kind


class AnswerBroken(LegokvError):
    """An answer that ends with its connection: its client or its server is gone."""

    code = "CANCELLED"


class RankingMissing(InvalidRequest):
    """A mode by rankings over chunks that have none; `keys` are theirs."""

    def __init__(self, message: str, keys: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


class NotFound(LegokvError):
    """Something the request names is not known in its namespace."""

    code = "NOT_FOUND"


class KeyMissing(ApiRefused):
    """A request without an API key, or with one that is not known."""

    def __init__(self, message: str) -> None:
        super().__init__(message, 401, kind="invalid_api_key")


class NotAllowed(ApiRefused):
    """What this API key, or this page of another site, may not do."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, 403, param, "not_allowed")


class RateLimited(ApiRefused):
    """A key's limit a minute is reached; after `retry_after_seconds` the same may be taken."""

    def __init__(self, message: str, retry_after_seconds: int = 1) -> None:
        super().__init__(message, 429, kind="rate_limit_exceeded")
        self.retry_after_seconds = retry_after_seconds


class PoolFull(LegokvError):
    """The page pool cannot hold what was asked; nothing was taken."""

    code = "UNAVAILABLE"


class PoolTooSmall(PoolFull):
    """The whole page pool cannot hold what was asked: asking again does not help."""

    code = "INVALID_ARG"


class Busy(LegokvError):
    """What was asked is in use or the queue is full; the same call may succeed later."""

    code = "UNAVAILABLE"


class TimedOut(LegokvError):
    """The request's time was over before its answer began; with more time it may succeed."""

    code = "UNAVAILABLE"


class Cancelled(LegokvError):
    """The request was cancelled before it finished."""

    code = "CANCELLED"


class UnsupportedModel(LegokvError):
    """A checkpoint this project cannot compile correctly; the message says what and why."""

    code = "UNSUPPORTED"


class EngineMismatch(LegokvError):
    """An engine folder that does not fit this version, machine or library; names both sides."""

    code = "UNSUPPORTED"


class StepFailed(LegokvError):
    """What a request asked for could not be computed; the log says why, and others go on."""


class OutOfMemory(StepFailed):
    """No memory was left for a step; with less under way the same request may be answered."""

    code = "UNAVAILABLE"


class DeviceLost(StepFailed):
    """The GPU computes nothing more in this process: an error that no later call gets over."""

    code = "UNAVAILABLE"


class NotFinite(StepFailed):
    """The model gave NaN or infinity where numbers are due; nothing is drawn from or kept of it."""


class FormatFailed(StepFailed):
    """An answer's format that cannot say which tokens may come next; the others go on."""

    code = "INVALID_ARG"


class LaunchRefused(StepFailed):
    """A kernel's launcher that said no; the message is the library's own."""

    code = "UNSUPPORTED"


def sentence_of(error: BaseException) -> str:
    """What an error says, to be printed: nothing in it drives a terminal, and no line is endless.

    For all that prints one: files and requests come from anywhere, and errors name what is in them.
    """
    return "\n".join(_cut(printable(line)) for line in str(error).split("\n"))


def printable(text: str) -> str:
    """The text with all that could end a line or drive a terminal written as Python writes it."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


_KINDS = {
    str: "a text",
    bool: "true or false",
    int: "a whole number",
    float: "a fraction",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """What a JSON value is, in plain words."""
    return _KINDS.get(type(value), type(value).__name__)


def shown(value: object) -> str:
    """A JSON value in a sentence: the beginning of a text in quotes, of others what they are."""
    return repr(value[:80]) if isinstance(value, str) else kind_of(value)


def exact(number: float) -> str:
    """A number in digits that no other has: it never looks like the bound that it breaks.

    One that came as float32 has the digits that its sender wrote.
    """
    if isinstance(number, int):
        return str(number)
    short = f"{number:g}"
    return short if number in (float(short), _as_float32(float(short))) else str(number)


def _as_float32(number: float) -> float:
    try:
        (single,) = struct.unpack("f", struct.pack("f", number))
    except OverflowError:
        return number
    return float(single)


def _cut(line: str) -> str:
    """A long line without its middle: its end says what to do."""
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[: LONGEST_LINE * 2 // 3]} … {line[-LONGEST_LINE // 4 :]}"


UnreadableReason = Literal[
    "missing", "io", "length", "header", "identity", "checksum", "layout", "not_finite", "unknown"
]


class ChunkUnreadable(LegokvError):
    """A stored chunk that is gone or damaged. The caller compiles it again.

    reason: "missing"; "io", the system could not read it; "length", shorter or longer than it says;
    "header", damaged or of another format; "identity", another chunk's; "checksum"; "layout", not
    the shape or type of the model's KV; or "not_finite", with NaN or infinity in it.
    """

    def __init__(self, message: str, reason: UnreadableReason = "unknown") -> None:
        super().__init__(message)
        self.reason: UnreadableReason = reason


class CacheUnavailable(LegokvError):
    """A registry or tier that cannot be reached or written now: disk full, read-only, no server."""

    code = "UNAVAILABLE"


class StillUnavailable(CacheUnavailable):
    """As an error said a few seconds ago, and nobody has asked since; no news for a log."""


class ClaimLost(LegokvError):
    """A document was deleted, or another took it over, while it was compiled."""

    code = "UNAVAILABLE"


class ServerError(LegokvError):
    """The Triton server could not be started or did not become ready."""


class ModelProcessLost(ServerError):
    """A process that runs one of the server's models ended by itself; the server must restart."""


class ServerDeaf(ServerError):
    """The server's processes are there, and it answers nothing; the server must restart."""


class EngineGone(LegokvError):
    """The engine's process ended, or the server is stopping, while an answer was under way."""

    code = "UNAVAILABLE"


class BackendMissing(LegokvError):
    """The backend asked for cannot build here; the message says what it lacks and how to get it."""

    code = "UNSUPPORTED"


class PlanBuildFailed(LegokvError):
    """TensorRT did not build the plan; the message says at what, and what TensorRT said."""


class ToolchainMissing(LegokvError):
    """Something needed to compile is not there and could not be fetched; says how to get it."""

    code = "UNSUPPORTED"


class ToolMisnamed(LegokvError):
    """A variable of the environment names what is not there: nothing else is taken in its place."""

    code = "INVALID_ARG"


class NativeLibraryMissing(LegokvError):
    """No compiled library that fits; the message says why and what to do."""

    code = "UNSUPPORTED"


class NativeBuildFailed(LegokvError):
    """CMake or the compiler failed; the message has what they printed from the first error on."""


class PluginBuildFailed(LegokvError):
    """The same of the plugins for a GPU."""
