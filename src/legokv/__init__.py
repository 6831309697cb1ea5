"""Position-independent KV caching: compile documents once, link them in any order."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from legokv.version import VERSION

if TYPE_CHECKING:
    from legokv.built.settings import EngineSettings
    from legokv.chunks.chunk import Chunk
    from legokv.engine.engine import Engine
    from legokv.engine.request import AnswerOptions, GenerateRequest
    from legokv.engine.sampling import SamplingOptions

__version__ = VERSION
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
    "AnswerOptions": "legokv.engine.request",
    "Chunk": "legokv.chunks.chunk",
    "Engine": "legokv.engine.engine",
    "EngineSettings": "legokv.built.settings",
    "GenerateRequest": "legokv.engine.request",
    "SamplingOptions": "legokv.engine.sampling",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'legokv' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
