"""Whether the server answers, as its probe has found out, and what is said while it does not."""

from dataclasses import dataclass

from legokv.errors import Busy
from legokv.serving.front.internals import STARTING


@dataclass
class State:
    """What is known now. For the front's one thread."""

    answering: bool = False
    refusal: str = ""

    @property
    def ready(self) -> bool:
        """Whether requests would be answered now."""
        return self.answering and not self.refusal

    def check_taking(self) -> None:
        """Busy, with the sentence, while no new requests are taken."""
        if self.refusal:
            raise Busy(self.refusal)

    def reason(self) -> str:
        """Why it is not ready, in a sentence."""
        return self.refusal or STARTING
