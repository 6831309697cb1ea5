"""Errors of Triton that name what lies inside the server: clients get a sentence in their place."""

import json
import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from legokv.errors import LegokvError
from legokv.serving.error_codes import parted
from legokv.serving.log import RequestLine

_WORDS = (
    r"legokv_\d+_",
    r"/dev/shm",
    r"shared memory",
    r"\bstub process\b",
    r"\bpb_utils\b",
    r"\bAt:\n",
    r"\.(?:py|cc|h|so)\b[(:]",
    r"Failed to process the request\(s\)",
)
_GONE = re.compile(
    r"stub process .* (?:not healthy|died|restart)|Request for unknown model|"
    r"Server is (?:exiting|stopping|not ready)",
    re.IGNORECASE,
)

# What Triton says with status 500 of a body that it cannot read, which is the client's mistake.
_UNREADABLE = re.compile(
    r"(?:Converting keyword: .*?: )?"
    r"(?:failed to parse the request JSON|Unable to parse|attempt to (?:access|get) "
    r"|parameter key |failed to get request params|Expected JSON object for keyword)",
    re.DOTALL,
)

_ABOUT_REQUESTS = ("INVALID_ARG", "NOT_FOUND")
"""What our models refuse by these codes names what the client sent, not what is inside."""

EVENT = b"data: "
"""What an event of a stream begins with."""
FAULT = "an internal error; the server's log has it"
STARTING = "the server is starting or has lost a process: ask again in a few seconds"


@dataclass(frozen=True)
class Shown:
    """What a client gets of an error: its code, "" where Triton said it, and the sentence."""

    code: str
    sentence: str


class Internals:
    """Finds names of the server's own in sentences. `places` are folders that nobody is told of."""

    def __init__(self, places: Iterable[str]) -> None:
        folders = {sys.prefix, sys.base_prefix, f"{tempfile.gettempdir()}/legokv", *places} - {"/"}
        words = (*_WORDS, *(re.escape(folder) for folder in sorted(folders)))
        self._words = re.compile("|".join(words), re.IGNORECASE)

    def shown(self, error: str) -> Shown:
        """What clients get of an error, in place of which the log gets what names the inside."""
        code, sentence = parted(error)
        if code in _ABOUT_REQUESTS:
            return Shown(code, sentence)
        gone = _GONE.search(sentence) is not None
        if not gone and not self._words.search(sentence):
            return Shown(code, sentence)
        hidden = LegokvError(f"Triton's error, which clients do not see: {sentence}")
        RequestLine("front").failed(hidden)
        return Shown("UNAVAILABLE", STARTING) if gone else Shown("INTERNAL", FAULT)


def is_unreadable_body(sentence: str) -> bool:
    """Whether an error of Triton's is about JSON that it cannot read, or of another type."""
    return _UNREADABLE.match(sentence) is not None


def sentence_in(body: bytes) -> str:
    """The sentence of an error as Triton's HTTP has it, in JSON or in an event with JSON."""
    try:
        return str(json.loads(body.removeprefix(EVENT))["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return body.decode(errors="replace")
