"""The address of a shared cache, checked and shown without its password. Needs no Redis client."""

from urllib.parse import urlsplit

from legokv.errors import InvalidRequest

NO_REDIS = "none"
_SCHEMES = ("redis", "rediss", "unix")


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
