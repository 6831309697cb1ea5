"""On whose behalf a request is answered, as the endpoints see it; who it is, others find out."""

from dataclasses import dataclass
from typing import Protocol

from legokv.documents.document import namespace_or_default


class Reservation(Protocol):
    """Tokens taken ahead of an answer."""

    @property
    def prompt(self) -> int:
        """Those of its prompt."""

    def settle(self, used: int) -> None:
        """Count what prompt and answer had in place of what was reserved."""


class Account(Protocol):
    """Who asks. What stands before the endpoints puts it into a request's `state`."""

    @property
    def stored_bytes(self) -> int:
        """Most bytes of the namespace's files; 0: what the server allows any."""

    @property
    def limits_tokens(self) -> bool:
        """Whether tokens are counted, and so reserved ahead of an answer."""

    def namespace(self, name: str | None = None) -> str:
        """The one that is reached."""

    def check_metrics(self) -> None:
        """Raises unless the account may read the figures of the whole server."""

    def reserve_tokens(self, prompt: int, answers: int) -> Reservation:
        """The prompt's tokens and the most that answers may have; raises if fewer are left."""


@dataclass(frozen=True)
class Uncounted:
    """A reservation where nobody counts."""

    prompt: int = 0

    def settle(self, used: int) -> None:
        """Nothing is counted."""


@dataclass(frozen=True)
class Everybody:
    """The one account of a server without keys: no limits but the server's own."""

    stored_bytes: int = 0
    limits_tokens: bool = False

    def namespace(self, name: str | None = None) -> str:
        return namespace_or_default(name)

    def check_metrics(self) -> None:
        """All may read them."""

    def reserve_tokens(self, prompt: int, answers: int) -> Reservation:
        return Uncounted()
