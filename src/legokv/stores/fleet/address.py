"""Where a fleet's shared cache is; its URL checked, and shown without its password. No client."""

from dataclasses import dataclass, field
from urllib.parse import urlsplit

from legokv.errors import InvalidRequest

NO_REDIS = "none"
STALE_SECONDS = 900.0
"""So long documents are answered as they were seen last while Redis does not answer."""
_SCHEMES = ("redis", "rediss", "unix")


@dataclass(frozen=True)
class SharedCache:
    """One model's documents and chunks in a Redis; `model` begins the names of its keys."""

    url: str = field(repr=False)
    model: str
    stale_seconds: float = STALE_SECONDS


def shared_cache(
    redis_url: str, fingerprint: str, stale_seconds: float = STALE_SECONDS
) -> SharedCache | None:
    """Where the model of this fingerprint is shared; None if no Redis is given."""
    if redis_url == NO_REDIS:
        return None
    return SharedCache(check_redis_url(redis_url), fingerprint[:16], stale_seconds)


def check_redis_url(url: str) -> str:
    """The URL itself; InvalidRequest, without the password, if it is no address of a Redis."""
    try:
        parts = urlsplit(url)
        whole = parts.path if parts.scheme == "unix" else parts.hostname
        port_is_number = parts.port is None or parts.port > 0
    except ValueError:
        whole, port_is_number = None, False
    if not whole or not port_is_number or parts.scheme not in _SCHEMES:
        raise InvalidRequest(
            "redis_url is redis://HOST:PORT/NUMBER, rediss:// for TLS, unix:///PATH, or "
            f"'{NO_REDIS}', not what was given (it is not shown, for it may hold a password)"
        )
    return url


def shown_redis_url(url: str) -> str:
    """The URL with neither user, password nor options."""
    if url == NO_REDIS:
        return url
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
    port = "" if parts.port is None else f":{parts.port}"
    return f"{parts.scheme}://{host}{port}{parts.path}"
