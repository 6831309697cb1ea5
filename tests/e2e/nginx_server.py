"""A real nginx with the example's configuration, before servers of the tests."""

import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from debian_program import debian_program
from paths import ROOT
from ports import free_port
from server import RunningServer

EXAMPLE = ROOT / "examples" / "fleet" / "nginx.conf"
PACKAGES = ("nginx", "nginx-common", "libpcre2-8-0")
START_SECONDS = 60.0


@dataclass(frozen=True)
class Balancer:
    """Where nginx listens."""

    http: str
    grpc: str


@contextmanager
def balancing(folder: Path, servers: Sequence[RunningServer]) -> Iterator[Balancer]:
    """nginx before the example's servers `one` and `other`, which are these two."""
    program = debian_program(("nginx",), PACKAGES)
    http, grpc = free_port(), free_port()
    (folder / "nginx.conf").write_text(_configuration(folder, servers, http, grpc))
    foreground = f"daemon off; master_process off; pid {folder}/pid; error_log stderr;"
    process = subprocess.Popen(
        [program.path, "-p", folder, "-c", folder / "nginx.conf", "-g", foreground],
        env=program.environment,
    )
    try:
        _wait_for(process, http)
        yield Balancer(f"http://127.0.0.1:{http}", f"127.0.0.1:{grpc}")
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _configuration(folder: Path, servers: Sequence[RunningServer], http: int, grpc: int) -> str:
    """The example's text with these servers' addresses, these ports, and folders we may write."""
    text = EXAMPLE.read_text()
    places = {"listen 8000;": f"listen 127.0.0.1:{http};", "listen 8001 ": f"listen {grpc} "}
    for name, server in zip(("one", "other"), servers, strict=True):
        places[f"server {name}:8000;"] = f"server {server.http.removeprefix('http://')};"
        places[f"server {name}:8001;"] = f"server {server.grpc};"
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    folders = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
    places["http {"] = f"http {{ access_log off; {folders}"
    for old, new in places.items():
        assert text.count(old) == 1, f"the example has no single {old!r}"
        text = text.replace(old, new)
    return text


def _wait_for(process: "subprocess.Popen[bytes]", port: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, f"nginx ended with status {process.returncode}"
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nginx took no connection in {START_SECONDS} s"
            time.sleep(0.05)
