"""Errors of Triton that name what lies inside the server: clients get a sentence in their place."""

import re
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass

from legokv.errors import LegokvError
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

FAULT = "an internal error; the server's log has it"
STARTING = "the server is starting or has lost a process: ask again in a few seconds"


@dataclass(frozen=True)
class Replaced:
    """What a client gets in an error's place; `gone`: the same may succeed later."""

    sentence: str
    gone: bool


class Internals:
    """Finds names of the server's own in sentences. `places` are folders that nobody is told of."""

    def __init__(self, places: Iterable[str]) -> None:
        folders = {sys.prefix, sys.base_prefix, f"{tempfile.gettempdir()}/legokv", *places} - {"/"}
        words = (*_WORDS, *(re.escape(folder) for folder in sorted(folders)))
        self._words = re.compile("|".join(words), re.IGNORECASE)

    def replaced(self, sentence: str) -> Replaced | None:
        """What is said in place of an error's sentence, which the log gets; None if it may be
        passed on.
        """
        gone = _GONE.search(sentence) is not None
        if not gone and not self._words.search(sentence):
            return None
        hidden = LegokvError(f"Triton's error, which clients do not see: {sentence}")
        RequestLine("front").failed(hidden)
        return Replaced(STARTING if gone else FAULT, gone)


def is_unreadable_body(sentence: str) -> bool:
    """Whether an error of Triton's is about JSON that it cannot read, or of another type."""
    return _UNREADABLE.match(sentence) is not None
