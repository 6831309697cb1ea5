"""What a server is told: an engine's settings and its own, in one record. No Triton, no torch."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from legokv.built.folder import EngineFacts, cache_root, registry_file
from legokv.built.settings import EngineSettings, choice, setting
from legokv.chunks.header import token_bytes
from legokv.documents.document import DocumentLimits, NamespaceQuota
from legokv.engine.request import MODES_WITH_BUDGET
from legokv.errors import InvalidRequest
from legokv.stores.fleet.address import SharedCache, shared_cache, shown_redis_url
from legokv.text.switches import Switches, parse_switches

PREFIX = "LEGOKV_"
NO_KEYS = NO_ORIGINS = "none"
LOOPBACK = "127.0.0.1"
_ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://[^\s/?#@,]+", re.ASCII)
TEMPLATES_OWN = "template"
"""The `system_text` of a server that has none of its own."""


def _user_cache_dir() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "legokv"


def _facts_of(name: str) -> Mapping[Any, Any]:
    """Meaning and bounds of an engine's setting that has another default here."""
    return next(item.metadata for item in fields(EngineSettings) if item.name == name)


@dataclass(frozen=True, kw_only=True)
class Settings(EngineSettings):
    """All settings of one server. InvalidRequest for a value out of range."""

    engine: Path = field(metadata={"meaning": "engine folder, from build/build_engine.py"})
    cache_dir: Path = field(default_factory=_user_cache_dir, metadata=_facts_of("cache_dir"))
    max_queue_requests: int = field(default=512, metadata=_facts_of("max_queue_requests"))
    kept_tokens: int = field(default=16384, metadata=_facts_of("kept_tokens"))
    host: str = setting("127.0.0.1", "address to listen on")
    http_port: int = setting(8000, "HTTP port; auto takes a free one", 0, 65535)
    grpc_port: int = setting(8001, "gRPC port; auto takes a free one", 0, 65535)
    metrics_port: int = setting(8002, "metrics port; auto takes a free one", 0, 65535)
    api: str = choice(("on", "off"), "the gateway, which speaks OpenAI's and Anthropic's API")
    api_port: int = setting(8080, "the gateway's port; auto takes a free one", 0, 65535)
    api_keys: str = setting(NO_KEYS, "file of legokv keys; none: whoever reaches it may ask")
    api_origins: str = setting(NO_ORIGINS, "sites whose pages may ask, by commas; * for all")
    expose_triton: str = choice(("off", "on"), "Triton itself listens at the ports, unchecked")
    max_connections: int = setting(2048, "most connections, and most gRPC calls, at once", 1)
    max_request_bytes: int = setting(0, "longest request; 0: what the longest text takes", 0)
    stream_idle_seconds: int = setting(300, "so long a gRPC stream may have nothing under way", 1)
    probe_seconds: int = setting(5, "longest answer to the server's question to itself", 1)
    deaf_seconds: int = setting(60, "after so long without such an answer it starts anew", 1)
    drain_seconds: int = setting(25, "longest for answers under way when it is told to stop", 0)
    ready_timeout_seconds: int = setting(120, "longest start of the server", 1)
    redis_stale_seconds: int = setting(
        900, "so long documents seen before are answered while Redis is away", 0
    )
    max_chunk_tokens: int = setting(1024, "longest span of a document stored as one chunk", 1)
    max_document_tokens: int = setting(131072, "longest document, at most the model's context", 1)
    max_document_bytes: int = setting(4 * 2**20, "longest document's text in UTF-8", 1)
    max_question_bytes: int = setting(2**20, "longest question or system text in UTF-8", 1)
    rank_documents: str = choice(("off", "on"), "rank documents where a request does not say")
    max_documents: int = setting(256, "most documents in one prompt", 1)
    default_max_tokens: int = setting(256, "longest answer where a request does not say", 1)
    default_mode: str = choice(MODES_WITH_BUDGET, "usual mode", listed="the modes with a budget")
    default_link_tokens: int = setting(16, "recomputed tokens of each document, likewise", 0)
    default_timeout_seconds: int = setting(600, "longest answering where one does not say", 1)
    system_text: str = setting(TEMPLATES_OWN, "system text of a request without one, or template")
    compile_behind: str = choice(("nothing", "head"), "what documents are compiled behind")
    other_heads: str = choice(("compile", "link"), "what is done about a request's other head")
    other_heads_after: int = setting(8, "requests with such a head before it is compiled behind", 1)
    other_heads_bytes: int = setting(2**30, "most KV compiled behind such heads", 0)
    chat_template_kwargs: str = setting("{}", "variables of the chat template, a JSON object")
    log_level: str = choice(
        ("info", "debug", "warning", "error"), "least serious lines that are written"
    )
    request_log: str = choice(("on", "off"), "one JSON line for each request that ended")

    def __post_init__(self) -> None:
        super().__post_init__()
        self.switches  # noqa: B018 - raises what is wrong with it
        self.origins  # noqa: B018 - the same
        if self.keys_file is None:
            return
        if self.api == "off":
            raise InvalidRequest("api_keys are the gateway's, and api is off: leave one out")
        if self.expose_triton == "on":
            raise InvalidRequest(
                "api_keys and expose_triton: Triton itself asks for no key, leave one out"
            )

    @property
    def switches(self) -> Switches:
        """Variables of the chat template, where a request does not set them."""
        return parse_switches(self.chat_template_kwargs, "chat_template_kwargs")

    @property
    def keys_file(self) -> Path | None:
        """The file of API keys; None: there are no keys."""
        return None if self.api_keys == NO_KEYS else Path(self.api_keys).expanduser().absolute()

    @property
    def origins(self) -> tuple[str, ...]:
        """Sites whose pages may ask the gateway. InvalidRequest for one that is none."""
        names = () if self.api_origins == NO_ORIGINS else self.api_origins.split(",")
        origins = tuple(name.strip().rstrip("/").lower() for name in names)
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise InvalidRequest(
                    f"api_origins has {origin[:100]!r}, which is no site like "
                    "https://chat.example:8443, nor *"
                )
        return origins

    @property
    def triton_host(self) -> str:
        """Where Triton's ports listen: they ask for no key, so with keys on loopback alone."""
        return self.host if self.keys_file is None else LOOPBACK

    @property
    def own_system_text(self) -> str | None:
        """The system text of a request that has none; None: what the template says by itself."""
        return None if self.system_text == TEMPLATES_OWN else self.system_text

    @property
    def request_bytes(self) -> int:
        """Longest request as it is sent: JSON inside JSON takes up to four bytes for one."""
        longest_text = max(self.max_document_bytes, 2 * self.max_question_bytes)
        return self.max_request_bytes or 4 * longest_text + 2**20

    @property
    def document_limits(self) -> DocumentLimits:
        """What the documents service takes; pins may hold half of the pool."""
        return DocumentLimits(
            max_document_bytes=self.max_document_bytes,
            max_document_tokens=self.max_document_tokens,
            max_chunk_tokens=min(self.max_chunk_tokens, self.pool_tokens),
            max_pinned_tokens=self.pool_tokens // 2,
            rank=self.rank_documents == "on",
        )

    def document_limits_of(self, facts: EngineFacts) -> DocumentLimits:
        """The same for one model: a document past its context would fit no prompt."""
        limits = self.document_limits
        return replace(
            limits,
            max_document_tokens=min(limits.max_document_tokens, facts.model.context_len),
            namespace_quota=self.namespace_quota(facts),
            token_bytes=self._token_bytes(facts),
        )

    def registry_path(self, facts: EngineFacts) -> Path:
        """The document registry's file; documents belong to one model."""
        return registry_file(cache_root(self.cache_dir, facts))

    def namespace_quota(self, facts: EngineFacts) -> NamespaceQuota | None:
        """What a namespace's documents may have of the model's KV; None: any amount."""
        if not self.namespace_bytes:
            return None
        return NamespaceQuota(self.namespace_bytes, self._token_bytes(facts))

    def _token_bytes(self, facts: EngineFacts) -> int:
        return token_bytes(facts.model, self.dtype_or(facts.dtype), self.kv_stored_dtype)

    def shared_cache(self, facts: EngineFacts) -> SharedCache | None:
        """Where a fleet keeps the model's documents and KV; None: this server is alone."""
        return shared_cache(self.redis_url, facts.fingerprint, self.redis_stale_seconds)

    def shown(self) -> dict[str, object]:
        """All settings as plain values, to be printed: no password is among them."""
        values = {name: _plain(value) for name, value in self._values().items()}
        return {**values, "redis_url": shown_redis_url(self.redis_url)}

    def environment(self) -> dict[str, str]:
        """The variables from which `settings_from` makes the same record."""
        return {f"{PREFIX}{name.upper()}": str(value) for name, value in self._values().items()}

    def _values(self) -> dict[str, object]:
        return {item.name: getattr(self, item.name) for item in SETTINGS}


# The server's own come first: no server starts without the first of them.
_OF_ENGINES = frozenset(item.name for item in fields(EngineSettings))
SETTINGS = tuple(sorted(fields(Settings), key=lambda item: item.name in _OF_ENGINES))


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value
