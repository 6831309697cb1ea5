"""What all endpoints share. One for a process; nothing of a request is left in it."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

from legokv.built.folder import EngineFacts
from legokv.errors import ApiRefused
from legokv.serving.gateway.library import Library, Uploads
from legokv.serving.gateway.models import Models
from legokv.serving.gateway.tool_reading import ToolForm
from legokv.serving.settings import Settings
from legokv.text.tokenizer import Tokenizer

ShowMetrics = Callable[[], Awaitable[tuple[int, str, bytes]]]


class Readiness(Protocol):
    """Whether the server answers."""

    @property
    def ready(self) -> bool: ...

    def reason(self) -> str:
        """Why it is not ready."""


@dataclass(frozen=True)
class World:
    """`created` is when the engine folder was made, Unix seconds."""

    settings: Settings
    facts: EngineFacts
    created: int
    tokenizer: Tokenizer
    models: Models
    library: Library
    uploads: Uploads
    readiness: Readiness
    show_metrics: ShowMetrics
    tool_form: ToolForm | None

    def check_model(self, name: str) -> None:
        """ApiRefused with status 404 if this is not the model that the server has."""
        if name != self.facts.name:
            raise ApiRefused(
                f"there is no model {name[:200]!r} here, only {self.facts.name!r}",
                404,
                "model",
                "model_not_found",
            )
