"""What others reach of a server that listens for more than its own machine. Sentences only."""

import ipaddress
from collections.abc import Iterator

from legokv.serving.settings import Settings


def exposed(settings: Settings) -> Iterator[str]:
    """A warning for each thing that is open to others than this machine's programs."""
    local = is_loopback(settings.host)
    ports = f"{settings.http_port} (HTTP), {settings.grpc_port} (gRPC)"
    if settings.expose_triton == "on":
        who = "every program of this machine" if local else "whoever reaches this machine"
        yield (
            f"warning: --expose-triton: {who} speaks to Triton itself at ports {ports}; requests "
            "are known that end it or write into its memory (docs/security.md)"
        )
    if not local and settings.keys_file is not None:
        yield (
            f"warning: --host {settings.host}: there is no TLS at port {settings.api_port}: keys, "
            f"documents and answers cross the network as they are (docs/security.md). Ports "
            f"{ports} and {settings.metrics_port} (metrics) ask for no key, and listen at "
            f"{settings.triton_host} alone"
        )
    elif not local:
        gateway = f"{settings.api_port} (API), " if settings.api == "on" else ""
        yield (
            f"warning: --host {settings.host}: whoever reaches ports {gateway}{ports} and "
            f"{settings.metrics_port} (metrics) of this machine can ask, read, register and delete "
            "in every namespace; there are no keys and no TLS here (docs/security.md)"
        )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
