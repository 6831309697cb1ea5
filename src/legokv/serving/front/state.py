"""Whether the server answers, as its probe has found out, and what is said while it does not."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from legokv.errors import Busy, LegokvError
from legokv.serving.error_codes import HTTP_STATUS
from legokv.serving.front.internals import STARTING
from legokv.serving.log import RequestLine


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
