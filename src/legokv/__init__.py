"""Position-independent KV caching: compile documents once, link them in any order."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from legokv.chunks.chunk import Chunk
    from legokv.engine import Engine
    from legokv.sample import SamplingOptions

__version__ = "0.1.0"
__all__ = ["Chunk", "Engine", "SamplingOptions", "__version__"]


# Engine brings torch; the server's small processes import legokv and must start without it.
def __getattr__(name: str) -> Any:
    if name == "Engine":
        from legokv.engine import Engine

        return Engine
    if name == "Chunk":
        from legokv.chunks.chunk import Chunk

        return Chunk
    if name == "SamplingOptions":
        from legokv.sample import SamplingOptions

        return SamplingOptions
    raise AttributeError(f"module 'legokv' has no attribute '{name}'")
