"""Whether the server answers, as its probe has found out, and what is said while it does not."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from legokv.errors import Busy
from legokv.serving.front.internals import STARTING


@dataclass
class State:
    """What is known now. For the front's one thread."""

    answering: bool = False
    refusal: str = ""
    num_open: int = 0
    """Requests that were passed on and whose last reply has not come."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a refusal was told."""

    @property
    def ready(self) -> bool:
        """Whether requests would be answered now."""
        return self.answering and not self.refusal

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
