"""What a server is told: one frozen record of settings with their meanings. No Triton, no torch."""

import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from legokv.built.folder import EngineFacts, cache_root, registry_file
from legokv.chunks.budget import TierLimits
from legokv.chunks.header import token_bytes
from legokv.documents.document import DocumentLimits, NamespaceQuota
from legokv.engine.settings import DTYPES, EngineSettings
from legokv.errors import InvalidRequest
from legokv.stores.fleet.address import (
    NO_REDIS,
    SharedCache,
    check_redis_url,
    shared_cache,
    shown_redis_url,
)

PREFIX = "LEGOKV_"


def _setting(default: Any, meaning: str, least: int | None = None) -> Any:
    return field(default=default, metadata={"meaning": meaning, "least": least})


def _choice(choices: tuple[str, ...], meaning: str) -> Any:
    """One of `choices`, the first unless told."""
    return field(default=choices[0], metadata={"meaning": meaning, "choices": choices})


def _user_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legokv"


@dataclass(frozen=True)
class Settings:
    """All settings of one server. InvalidRequest for a value out of range."""

    engine: Path = field(metadata={"meaning": "engine folder, from build/build_engine.py"})
    cache_dir: Path = field(
        default_factory=_user_cache_dir,
        metadata={"meaning": "where documents and their KV are kept"},
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    http_port: int = _setting(8000, "HTTP port; 'auto' takes a free one", 0)
    grpc_port: int = _setting(8001, "gRPC port; 'auto' takes a free one", 0)
    metrics_port: int = _setting(8002, "metrics port; 'auto' takes a free one", 0)
    dtype: str = _choice(
        ("auto", *DTYPES),
        "in place of the engine's own",
    )
    runner: str = _choice(
        ("auto", "torch", "cuda", "plan"),
        "torch on the CPU, cuda with the plugins' kernels, plan, or auto by what is here",
    )
    pool_tokens: int = _setting(
        EngineSettings.pool_tokens, "tokens whose KV the page pool holds", 1
    )
    host_bytes: int = _setting(
        EngineSettings.host_bytes, "most KV in memory beside the pool; 0: none", 0
    )
    disk_bytes: int = _setting(EngineSettings.disk_bytes, "most KV in cache_dir; 0: none", 0)
    redis_url: str = field(
        default=NO_REDIS,
        repr=False,
        metadata={"meaning": "Redis that a fleet shares, redis://HOST:PORT/NUMBER, or 'none'"},
    )
    remote_bytes: int = _setting(EngineSettings.remote_bytes, "most KV in Redis; 0: none", 0)
    namespace_bytes: int = _setting(0, "most KV of one namespace in cache_dir or Redis; 0: any", 0)
    kv_stored_dtype: str = _choice(
        ("model", "int8"), "of KV in host memory, cache_dir and Redis; int8 takes half the bytes"
    )
    high_watermark_percent: int = _setting(100, "filled past this, a tier evicts", 1)
    low_watermark_percent: int = _setting(90, "and goes on down to this", 1)
    max_step_tokens: int = _setting(
        EngineSettings.max_step_tokens, "most tokens one step computes", 1
    )
    max_queue_requests: int = _setting(
        512, "most requests that wait, for the next step or for pages of the pool", 1
    )
    num_threads: int = _setting(0, "threads that compute; 0: as many as torch chooses", 0)
    attention: str = _choice(
        ("auto", "native", "torch"), "of the CPU: native, torch, or auto: native if it is compiled"
    )
    max_chunk_tokens: int = _setting(1024, "longest span of a document compiled at once", 1)
    max_document_tokens: int = _setting(131072, "longest document", 1)
    max_document_bytes: int = _setting(4 * 2**20, "longest document's text in UTF-8", 1)
    max_question_bytes: int = _setting(2**20, "longest question or system text in UTF-8", 1)
    max_documents: int = _setting(256, "most documents in one prompt", 1)
    default_max_tokens: int = _setting(256, "longest answer where a request does not say", 1)
    default_timeout_seconds: int = _setting(600, "longest answering where one does not say", 1)
    ready_timeout_seconds: int = _setting(120, "longest start of the server", 1)
    log_level: str = _choice(
        ("info", "debug", "warning", "error"), "least serious lines of the log that are written"
    )
    request_log: str = _choice(("on", "off"), "one JSON line for each request that ended")

    def __post_init__(self) -> None:
        for item in fields(self):
            value, least = getattr(self, item.name), item.metadata.get("least")
            if least is not None and value < least:
                raise InvalidRequest(f"{item.name} is {least} or more, not {value}")
            choices = item.metadata.get("choices", (value,))
            if value not in choices:
                raise InvalidRequest(f"{item.name} is one of {', '.join(choices)}, not '{value}'")
            if item.name.endswith("_port") and value > 65535:
                raise InvalidRequest(f"{item.name} is at most 65535, not {value}")
            if item.name.endswith("_percent") and value > 100:
                raise InvalidRequest(f"{item.name} is at most 100, not {value}")
        if self.redis_url != NO_REDIS:
            check_redis_url(self.redis_url)
        if self.low_watermark_percent > self.high_watermark_percent:
            raise InvalidRequest(
                f"low_watermark_percent {self.low_watermark_percent} is above "
                f"high_watermark_percent {self.high_watermark_percent}"
            )

    @property
    def document_limits(self) -> DocumentLimits:
        """What the documents service takes; pins may hold half of the pool."""
        return DocumentLimits(
            max_document_bytes=self.max_document_bytes,
            max_document_tokens=self.max_document_tokens,
            max_chunk_tokens=min(self.max_chunk_tokens, self.pool_tokens),
            max_pinned_tokens=self.pool_tokens // 2,
        )

    @property
    def engine_settings(self) -> EngineSettings:
        """What the engine is opened with."""
        return EngineSettings(
            dtype=None if self.dtype == "auto" else self.dtype,
            runner=self.runner,
            attention=self.attention,
            num_threads=self.num_threads or None,
            pool_tokens=self.pool_tokens,
            max_step_tokens=self.max_step_tokens,
            max_queue_requests=self.max_queue_requests,
            cache_dir=self.cache_dir,
            host_bytes=self.host_bytes,
            disk_bytes=self.disk_bytes,
            namespace_bytes=self.namespace_bytes,
            kv_stored_dtype=self.kv_stored_dtype,
            redis_url=self.redis_url,
            remote_bytes=self.remote_bytes,
            high_watermark=self.high_watermark_percent / 100,
            low_watermark=self.low_watermark_percent / 100,
        )

    @property
    def tier_limits(self) -> TierLimits:
        """Budgets of the tiers below the pool."""
        return self.engine_settings.tier_limits

    def registry_path(self, facts: EngineFacts) -> Path:
        """The document registry's file; documents belong to one model."""
        return registry_file(cache_root(self.cache_dir, facts))

    def namespace_quota(self, facts: EngineFacts) -> NamespaceQuota | None:
        """What a namespace's documents may have of the model's KV; None: any amount."""
        if not self.namespace_bytes:
            return None
        dtype = facts.dtype if self.dtype == "auto" else self.dtype
        return NamespaceQuota(
            self.namespace_bytes, token_bytes(facts.model, dtype, self.kv_stored_dtype)
        )

    def shared_cache(self, facts: EngineFacts) -> SharedCache | None:
        """Where a fleet keeps the model's documents and KV; None: this server is alone."""
        return shared_cache(self.redis_url, facts.fingerprint)

    def shown(self) -> dict[str, object]:
        """All settings as plain values, to be printed: no password is among them."""
        values = {name: _plain(value) for name, value in asdict(self).items()}
        return {**values, "redis_url": shown_redis_url(self.redis_url)}

    def environment(self) -> dict[str, str]:
        """The variables from which `settings_from` makes the same record."""
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in asdict(self).items()}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
