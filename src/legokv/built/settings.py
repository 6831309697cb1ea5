"""What an engine is opened with: each setting is said once, for library, server and documents.

A field's metadata has its meaning, bounds and choices. Checks, command-line flags, LEGOKV_
variables, names in TOML and the tables of docs/serving.md follow from it. Imports no torch.
"""

from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, TypeVar, cast, get_args

from legokv.chunks.budget import Budget
from legokv.chunks.header import StoredDtype
from legokv.errors import InvalidRequest, kind_of
from legokv.model.dtypes import DTYPES
from legokv.stores.fleet.address import NO_REDIS, check_redis_url

RunnerName = Literal["auto", "torch", "cuda", "plan"]
FormName = Literal["portable", "avx2", "avx512", "avx512_bf16", "amx"]
AttentionName = Literal["auto", "native", "torch", FormName]
_Record = TypeVar("_Record")


def setting(default: Any, meaning: str, least: int | None = None, most: int | None = None) -> Any:
    """A field of a record of settings."""
    return field(default=default, metadata={"meaning": meaning, "least": least, "most": most})


def choice(choices: tuple[str, ...], meaning: str, *, listed: str = "") -> Any:
    """A field that is one of `choices`, the first unless told; `listed` says which they are."""
    facts = {"meaning": meaning, "choices": choices, "listed": listed or ", ".join(choices)}
    return field(default=choices[0], metadata=facts)


def described(item: Field[Any]) -> str:
    """What a setting means, with the choices it has."""
    meaning, listed = item.metadata["meaning"], item.metadata.get("listed")
    return f"{meaning}; one of {listed}" if listed else f"{meaning}"


def check_settings(record: Any) -> None:
    """InvalidRequest with the first of the record's values that is out of its bounds."""
    for item in fields(record):
        value, facts = getattr(record, item.name), item.metadata
        choices, least, most = facts.get("choices"), facts.get("least"), facts.get("most")
        if choices is not None and value not in choices:
            raise InvalidRequest(f"{item.name} is one of {', '.join(choices)}, not '{value}'")
        if least is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise InvalidRequest(
                f"{item.name} is a whole number, not {kind_of(value)} {value!r:.80}"
            )
        if least is not None and value < least:
            raise InvalidRequest(f"{item.name} is {least} or more, not {value}")
        if most is not None and value > most:
            raise InvalidRequest(f"{item.name} is at most {most}, not {value}")


def documented(record: type[_Record]) -> type[_Record]:
    """The record, at the end of whose docstring stand its settings with default and meaning."""
    items = fields(cast(Any, record))
    lines = (f"    {item.name} ({item.default!r}): {described(item)}" for item in items)
    record.__doc__ = "\n".join(((record.__doc__ or "").rstrip(), *lines))
    return record


@documented
@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """All settings of an engine, each with a default; `dataclasses.replace` changes some.

    Bytes and tokens are plain counts. Percents are of a tier's bytes or the pool's pages.
    Without a cache_dir nothing is kept on disk; without a redis_url nothing is shared. An engine's
    dtype is decided when it is built; another one converts its weights as they are loaded.

    InvalidRequest, naming the setting, for a value out of range. What depends on the engine is
    checked when one is opened: a page of tokens fits into the pool, a plan holds the step.

    >>> import legokv
    >>> settings = legokv.EngineSettings(pool_tokens=4096, host_bytes=0, attention="torch")
    >>> settings.pool_tokens, settings.max_step_tokens
    (4096, 2048)
    >>> legokv.EngineSettings(runner="gpu")
    Traceback (most recent call last):
        ...
    legokv.errors.InvalidRequest: runner is one of auto, torch, cuda, plan, not 'gpu'

    The settings, each with its default:
    """

    dtype: str = choice(("auto", *DTYPES), "of weights and KV; auto: as built")
    runner: RunnerName = choice(get_args(RunnerName), "what computes")
    attention: AttentionName = choice(get_args(AttentionName), "of the CPU")
    gpu: int = setting(0, "number of the GPU that computes, where one does", 0)
    num_threads: int = setting(
        0, "threads that compute; 0: torch's number or one fewer, as measured", 0
    )
    max_step_tokens: int = setting(2048, "most tokens one step computes", 1)
    max_queue_requests: int = setting(
        1024, "most requests that wait, for the next step or for pages of the pool", 1
    )
    pool_tokens: int = setting(32768, "tokens whose KV the page pool holds", 1)
    kept_tokens: int = setting(
        0, "most tokens of ended requests kept in the pool, for those that go on; 0: none", 0
    )
    cache_dir: str | Path | None = setting(None, "where documents and their KV are kept")
    host_bytes: int = setting(2**30, "most KV in memory beside the pool; 0: none", 0)
    disk_bytes: int = setting(32 * 2**30, "most KV in cache_dir, of all models; 0: none", 0)
    redis_url: str = field(
        default=NO_REDIS,
        repr=False,
        metadata={"meaning": "Redis that a fleet shares, redis://HOST:PORT/NUMBER, or none"},
    )
    remote_bytes: int = setting(8 * 2**30, "most KV in Redis; 0: none", 0)
    namespace_bytes: int = setting(0, "most KV and texts of one namespace; 0: any", 0)
    kv_stored_dtype: StoredDtype = choice(
        get_args(StoredDtype), "of KV outside the pool; int8: half the bytes"
    )
    high_watermark_percent: int = setting(100, "filled past this, a tier evicts", 1, 100)
    low_watermark_percent: int = setting(90, "and goes on down to this", 1, 100)

    def __post_init__(self) -> None:
        check_settings(self)
        if self.redis_url != NO_REDIS:
            check_redis_url(self.redis_url)
        if self.low_watermark_percent > self.high_watermark_percent:
            raise InvalidRequest(
                f"low_watermark_percent {self.low_watermark_percent} is above "
                f"high_watermark_percent {self.high_watermark_percent}"
            )

    @property
    def watermarks(self) -> tuple[float, float]:
        """High and low, as shares."""
        return self.high_watermark_percent / 100, self.low_watermark_percent / 100

    def budget(self, num_bytes: int) -> Budget:
        """That of a tier of so many bytes."""
        return Budget(num_bytes, *self.watermarks)

    @property
    def namespace_budget(self) -> Budget | None:
        """That of one namespace in each durable tier; None: as much as the tier has."""
        return self.budget(self.namespace_bytes) if self.namespace_bytes else None

    def dtype_or(self, built: str) -> str:
        """The type that is computed in, of an engine built for `built`."""
        return built if self.dtype == "auto" else self.dtype

    def num_pages(self, page_size: int) -> int:
        """Pages of the pool; InvalidRequest if there is none."""
        if self.pool_tokens < page_size:
            raise InvalidRequest(
                f"pool_tokens is at least one page of {page_size}, not {self.pool_tokens}"
            )
        return self.pool_tokens // page_size
