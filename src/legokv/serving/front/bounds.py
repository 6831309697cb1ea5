"""What one connection and one request may have of the front, in numbers."""

from dataclasses import dataclass

from legokv.serving.settings import Settings

MAX_HEAD_BYTES = 32 * 1024
MAX_HEADERS = 100
FREE_CHUNKS = 1024
"""So many chunks of any size; past them a body's chunks have MIN_CHUNK_BYTES on average."""
MIN_CHUNK_BYTES = 64
HEAD_SECONDS = 30.0
"""Longest from a connection's or a request's first byte to the end of its headers."""
BODY_SECONDS = 120.0
WRITE_SECONDS = 60.0
"""Longest that a client may take nothing of its answer."""
IDLE_SECONDS = 75
"""So long a connection without a request is kept."""


@dataclass(frozen=True)
class Bounds:
    """The bounds that settings move."""

    request_bytes: int
    connections: int
    stream_idle_seconds: float = 300.0
    """So long a gRPC stream is kept that has nothing under way and sends nothing."""

    @classmethod
    def by_settings(cls, settings: Settings) -> "Bounds":
        return cls(settings.request_bytes, settings.max_connections, settings.stream_idle_seconds)
