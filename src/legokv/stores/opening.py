"""Opens what a fleet shares, where the optional Redis client is installed."""

import importlib.util
import logging
from typing import TYPE_CHECKING

from legokv.built.settings import EngineSettings
from legokv.errors import CacheUnavailable, InvalidRequest
from legokv.stores.fleet.address import SharedCache

if TYPE_CHECKING:
    from legokv.stores.fleet.connection import Connection
    from legokv.stores.fleet.registry import RedisRegistry
    from legokv.stores.fleet.tier import RemoteTier
from pathlib import Path

from legokv.documents.protocol import DocumentRegistry
from legokv.stores.local.registry import Registry

_log = logging.getLogger(__name__)


def open_connection(redis_url: str) -> "Connection":
    """The Redis itself, for what is of no model."""
    _require_client()
    from legokv.stores.fleet.connection import Connection

    return Connection(redis_url, "")


def open_shared_registry(shared: SharedCache) -> "RedisRegistry":
    """The fleet's registry of documents, whether Redis answers now or not."""
    _require_client()
    from legokv.stores.fleet.connection import Connection
    from legokv.stores.fleet.registry import RedisRegistry

    return RedisRegistry(Connection(shared.url, shared.model), shared.stale_seconds)


def open_remote_tier(registry: "RedisRegistry", settings: EngineSettings) -> "RemoteTier":
    """The tier beside the registry, trimmed to the budget if Redis answers now."""
    tier = remote_tier_of(registry, settings)
    try:
        tier.trim()
    except CacheUnavailable as error:
        _log.warning("the remote tier is used as soon as it answers: %s", error)
    return tier


def advise_on(registry: "RedisRegistry", settings: EngineSettings) -> None:
    """Say in the log what of Redis' settings loses documents."""
    from legokv.stores.fleet.advice import advise_soon

    advise_soon(registry.connection, settings.remote_bytes)


def remote_tier_of(registry: "RedisRegistry", settings: EngineSettings) -> "RemoteTier":
    """The tier beside the registry, as it is."""
    from legokv.stores.fleet.tier import RemoteLimits, RemoteTier

    limits = RemoteLimits(settings.budget(settings.remote_bytes), settings.namespace_budget)
    return RemoteTier(registry.connection, limits)


def _require_client() -> None:
    if importlib.util.find_spec("redis") is None:
        raise InvalidRequest("redis_url needs the Redis client: pip install 'legokv[fleet]'")


def open_registry(file: Path, shared: SharedCache | None) -> DocumentRegistry:
    """A server's registry: the one in `file`, or the shared one if there is one."""
    if shared is None:
        return Registry.open(file)
    registry = open_shared_registry(shared)
    registry.hear_deletions()
    return registry
