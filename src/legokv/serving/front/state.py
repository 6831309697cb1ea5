"""Whether the server answers, as its probe finds out, and what is said while it does not."""

import asyncio
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from legokv.errors import Busy, LegokvError
from legokv.serving.error_codes import HTTP_STATUS, parted
from legokv.serving.front.internals import STARTING, sentence_in
from legokv.serving.front.upstream import Upstream
from legokv.serving.log import RequestLine

PROBE_SECONDS = 2.0
"""From one question's end to the next one."""
_STARTING_SECONDS = 0.2


@dataclass
class State:
    """What is known now. For the front's one thread."""

    answering: bool = False
    refusal: str = ""
    num_open: int = 0
    """Requests that were passed on and whose last reply has not come."""
    num_refused: dict[str, int] = field(default_factory=lambda: dict.fromkeys(HTTP_STATUS, 0))
    """Requests that the front refused, by the errors' codes."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a refusal was told."""

    @property
    def ready(self) -> bool:
        """Whether requests would be answered now."""
        return self.answering and not self.refusal

    def note_refusal(self, error: LegokvError) -> None:
        """Log and count a request that was refused here."""
        RequestLine("front").failed(error)
        self.num_refused[error.code] += 1

    def check_taking(self) -> None:
        """Busy, with the sentence, while no new requests are taken."""
        if self.refusal:
            raise Busy(self.refusal)

    @contextmanager
    def one_open(self) -> Iterator[None]:
        """One request more is under way in the block."""
        self.num_open += 1
        try:
            yield
        finally:
            self.num_open -= 1

    def reason(self) -> str:
        """Why it is not ready, in a sentence."""
        return self.refusal or STARTING


@dataclass(frozen=True)
class _Question:
    model: str
    path: str
    body: bytes


def _questions(probe_id: str) -> tuple[_Question, ...]:
    # Neither is counted, logged or computed: the models know the id.
    request = {"name": "request", "shape": [1], "datatype": "BYTES", "data": ["{}"]}
    return (
        _Question(
            "generate",
            "/v2/models/generate/generate",
            json.dumps({"id": probe_id, "text_input": "?"}).encode(),
        ),
        _Question(
            "documents",
            "/v2/models/documents/infer",
            json.dumps({"id": probe_id, "inputs": [request]}).encode(),
        ),
    )


class Probe:
    """Keeps a State true. `failing_seconds` is how long no question was answered, 0 if one was."""

    def __init__(
        self, upstream: Upstream, state: State, probe_id: str, limit_seconds: float
    ) -> None:
        self._upstream = upstream
        self._state = state
        self._questions = _questions(probe_id)
        self._limit_seconds = limit_seconds
        self._answered = time.monotonic()
        self.reason = "the server was not asked yet"
        self.num_asked = 0

    @property
    def failing_seconds(self) -> float:
        """How long the server has not answered, as far as it was asked."""
        return time.monotonic() - self._answered if self.reason else 0.0

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            self.reason = await self.ask()
            self.num_asked += 1
            self._state.answering = not self.reason
            if not self.reason:
                self._answered = time.monotonic()
            await asyncio.sleep(PROBE_SECONDS if not self.reason else _STARTING_SECONDS)

    async def ask(self) -> str:
        """Why one of the models does not answer, "" if all do."""
        reasons = await asyncio.gather(*map(self._ask, self._questions))
        return next(filter(None, reasons), "")

    async def _ask(self, question: _Question) -> str:
        try:
            async with (
                asyncio.timeout(self._limit_seconds),
                self._upstream.request("POST", question.path, {}, question.body) as response,
            ):
                body = await response.read()
                if response.status == 200:
                    return ""
                _, sentence = parted(sentence_in(body))
                return f"model {question.model} says {sentence[:300]}"
        except TimeoutError:
            return f"model {question.model} did not answer in {self._limit_seconds:g} s"
        except OSError as error:
            return f"nobody answers for model {question.model}: {error}"
