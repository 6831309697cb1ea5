"""Asks the server the whole way, as a client does, and knows whether it answers."""

import asyncio
import json
import time
from dataclasses import dataclass

from legokv.serving.error_codes import parted
from legokv.serving.front.internals import sentence_in
from legokv.serving.front.state import State
from legokv.serving.front.upstream import Upstream

PROBE_SECONDS = 2.0
"""From one question's end to the next one."""
_STARTING_SECONDS = 0.2


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
