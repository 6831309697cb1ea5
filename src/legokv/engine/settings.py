"""What an engine is opened with: one frozen record. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from legokv.chunks.budget import DISK_BYTES, HOST_BYTES, REMOTE_BYTES, TierLimits
from legokv.errors import InvalidRequest
from legokv.model.dtypes import FLOAT_DTYPES
from legokv.stores.fleet.address import NO_REDIS

DTYPES = tuple(known.name for known in FLOAT_DTYPES.values())


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """All settings of an engine.

    InvalidRequest for a dtype that is none; the others are checked when an engine is opened.

    dtype: "bfloat16", "float16" or "float32" in place of the one it was built for.
    runner: "torch" on the CPU, "cuda", "plan", or "auto" by what is here (see `open_runner`).
    attention, of the CPU: "native", its library, compiled if it is not yet; "torch"; or "auto",
        native if it is there.
    num_threads: torch's, for this whole process.
    pool_tokens: how many tokens' KV the pool holds, at least a page.
    max_step_tokens: most tokens one step computes.
    max_queue_requests: most requests that wait for a step or pages, Busy for more.
    cache_dir: where persistent chunks are kept, below a folder named by the model's fingerprint.
    host_bytes, disk_bytes: most KV in memory and in cache_dir, 0 for none.
    namespace_bytes: most of one namespace on disk and in Redis each, 0 for any.
    kv_stored_dtype: "model", or "int8" with scales at half the bytes, to which KV is rounded once.
    redis_url: a Redis that several servers share, with remote_bytes of KV at most, 0 for none.
    high_watermark, low_watermark: filled past the first share of its bytes or pages, the pool or a
        tier evicts down to the second.
    """

    dtype: str | None = None
    runner: str = "auto"
    attention: str = "auto"
    num_threads: int | None = None
    pool_tokens: int = 32768
    max_step_tokens: int = 2048
    max_queue_requests: int = 1024
    cache_dir: str | Path | None = None
    host_bytes: int = HOST_BYTES
    disk_bytes: int = DISK_BYTES
    namespace_bytes: int = 0
    kv_stored_dtype: str = "model"
    redis_url: str = NO_REDIS
    remote_bytes: int = REMOTE_BYTES
    high_watermark: float = 1.0
    low_watermark: float = 0.9

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES:
            raise InvalidRequest(f"dtype is one of {', '.join(DTYPES)}, not '{self.dtype}'")

    @property
    def watermarks(self) -> tuple[float, float]:
        """High and low."""
        return self.high_watermark, self.low_watermark

    @property
    def tier_limits(self) -> TierLimits:
        """Budgets of the tiers below the pool."""
        return TierLimits(
            self.host_bytes,
            self.disk_bytes,
            self.namespace_bytes,
            *self.watermarks,
            self.remote_bytes,
        )

    def num_pages(self, page_size: int) -> int:
        """Pages of the pool; InvalidRequest if there is none, or no token in a step."""
        if self.pool_tokens < page_size or self.max_step_tokens < 1:
            raise InvalidRequest(
                f"pool_tokens is at least one page of {page_size}, max_step_tokens at least 1, "
                f"not {self.pool_tokens} and {self.max_step_tokens}"
            )
        return self.pool_tokens // page_size


class EngineChoices(TypedDict, total=False):
    """The fields of EngineSettings as keyword arguments."""

    dtype: str | None
    runner: str
    attention: str
    num_threads: int | None
    pool_tokens: int
    max_step_tokens: int
    max_queue_requests: int
    cache_dir: str | Path | None
    host_bytes: int
    disk_bytes: int
    namespace_bytes: int
    kv_stored_dtype: str
    redis_url: str
    remote_bytes: int
    high_watermark: float
    low_watermark: float
