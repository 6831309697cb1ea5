"""The server's ports: a free one where none was named, an error where one is taken."""

import socket
from dataclasses import replace

from legokv.errors import ServerError
from legokv.serving.settings import Settings

_NAMES = ("http_port", "grpc_port", "metrics_port")


def with_ports(settings: Settings) -> Settings:
    """The settings with all ports chosen; ServerError that names one already in use.

    A chosen port is free now; another program may still take it before the server does.
    """
    sockets = {name: _bound(settings.host, name, getattr(settings, name)) for name in _NAMES}
    try:
        return replace(settings, **{name: s.getsockname()[1] for name, s in sockets.items()})
    finally:
        for bound in sockets.values():
            bound.close()


def _bound(host: str, name: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As the server does: connections of an ended one that linger are no obstacle.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise ServerError(
            f"{name} {port} on {host} cannot be used: {error.strerror}. Choose another with "
            f"--{name.replace('_', '-')}, or 'auto' for a free one"
        ) from None
    return bound
