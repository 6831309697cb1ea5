"""Position-independent KV caching: compile documents once, link them in any order."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legokv.chunks.chunk import Chunk
    from legokv.engine import Engine
    from legokv.engine_settings import EngineSettings
    from legokv.request import AnswerOptions, GenerateRequest
    from legokv.sample import SamplingOptions

__version__ = "0.1.0"
__all__ = [
    "AnswerOptions",
    "Chunk",
    "Engine",
    "EngineSettings",
    "GenerateRequest",
    "SamplingOptions",
    "__version__",
]


# Engine brings torch; the server's small processes import legokv and must start without it.
_HOMES = {
    "AnswerOptions": "legokv.request",
    "Chunk": "legokv.chunks.chunk",
    "Engine": "legokv.engine",
    "EngineSettings": "legokv.engine_settings",
    "GenerateRequest": "legokv.request",
    "SamplingOptions": "legokv.sample",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'legokv' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
