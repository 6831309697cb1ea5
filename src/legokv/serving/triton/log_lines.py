"""A log in which equal lines are counted rather than repeated. No process here."""

import re
import time
from collections.abc import Callable, Iterator

SHOWN_SECONDS = 10.0
"""How often a line that goes on coming is told again, with its number."""
_MAX_KINDS = 64
# What Triton puts before its sentences, and numbers: time, thread, descriptor.
_CHANGING = re.compile(r"^[A-Z]\d{4} [\d:.]+ \d+ |\d+")
# libevent says it of each connection that is no TCP, which all are.
_NO_NEWS = "NODELAY NOT SUPPORTED"


_TRITONS = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d\.|\+-|\| |error: creating server")
# Of a model's process: its time, or a request's JSON.
_MODELS = re.compile(r"\d{4}-\d\d-\d\d |\{")


class OwnLines:
    """Which lines are Triton's own, with those that go on what one of them began."""

    def __init__(self) -> None:
        self._began = False

    def is_tritons(self, line: str) -> bool:
        if _MODELS.match(line):
            self._began = False
        elif _TRITONS.match(line):
            self._began = True
        return self._began


class CollapsedLog:
    """Which lines are shown. A JSON line is always: each is one request's."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # By kind, the latest last: when it was shown, and how often it came since.
        self._kinds: dict[str, tuple[float, int]] = {}

    def shown(self, line: str) -> Iterator[str]:
        """What is to be shown when this line comes: it, nothing, or it with a number."""
        if not line or _NO_NEWS in line:
            return
        if line.startswith("{"):
            yield line
            return
        now, kind = self._clock(), _CHANGING.sub("", line)
        since, times = self._kinds.pop(kind, (-SHOWN_SECONDS, 0))
        if now - since >= SHOWN_SECONDS:
            yield f"{line} (and {times} more like it in {now - since:.0f} s)" if times else line
            since, times = now, -1
        self._kinds[kind] = (since, times + 1)
        if len(self._kinds) > _MAX_KINDS:
            del self._kinds[next(iter(self._kinds))]
