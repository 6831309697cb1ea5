"""A real Redis or Valkey for the tests: found, or unpacked from Debian's packages without root."""

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent
UNPACKED = REPOSITORY / "out" / "downloads" / "redis"
PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
START_SECONDS = 20.0


@dataclass
class RedisServer:
    """One server process of ours, which may be killed, frozen and started again."""

    program: Path
    folder: Path
    port: int
    options: tuple[str, ...] = ()
    process: "subprocess.Popen[bytes]" = field(init=False)

    def __post_init__(self) -> None:
        self.start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Start it with what its append-only file has, and wait until it answers."""
        command = [self.program, "--port", str(self.port), "--bind", "127.0.0.1"]
        kept = ["--dir", self.folder, "--save", "", "--appendonly", "yes"]
        self.process = subprocess.Popen(
            [*command, *kept, *self.options],
            env=environment(self.program),
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self.process.poll() is None, "redis-server ended while starting"
            assert time.monotonic() < deadline, f"no answer after {START_SECONDS} s"
            time.sleep(0.02)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def freeze(self) -> None:
        """It takes connections and bytes, and answers nothing."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16).startswith(b"+PONG")
        except OSError:
            return False


@contextmanager
def redis_running(folder: Path, *options: str) -> Iterator[RedisServer]:
    """A server on a free port, ended with the block; a skip where none can be had."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RedisServer(redis_program(), folder, port, options)
    try:
        yield server
    finally:
        server.kill()


@cache
def redis_program() -> Path:
    """The server's program; the test that asks is skipped where there is none, with the reason."""
    for name in ("valkey-server", "redis-server"):
        if (found := shutil.which(name)) is not None:
            return Path(found)
    program = UNPACKED / "usr" / "bin" / "redis-server"
    if not program.exists():
        _unpack()
    result = subprocess.run(
        [program, "--version"], env=environment(program), capture_output=True, check=False
    )
    if result.returncode:
        pytest.skip(f"{program} does not run here: {result.stderr.decode()[-200:]}")
    return program


def environment(program: Path) -> dict[str, str]:
    """The environment in which an unpacked program finds the libraries unpacked beside it."""
    folders = {file.parent for file in program.parents[1].glob("lib/*/*.so.*")}
    beside = ":".join(sorted(map(str, folders))) if UNPACKED in program.parents else ""
    return {**os.environ, **({"LD_LIBRARY_PATH": beside} if beside else {})}


def _unpack() -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("no redis-server or valkey-server on PATH, and no Debian packages here")
    making = UNPACKED.with_name(f"redis.{os.getpid()}")
    making.mkdir(parents=True)
    try:
        _run(["apt-get", "download", *PACKAGES], making)
        for package in making.glob("*.deb"):
            _run(["dpkg-deb", "-x", package, making / "root"], making)
        if not UNPACKED.exists():
            (making / "root").rename(UNPACKED)
    finally:
        shutil.rmtree(making)


def _run(command: list[str | Path], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"redis-server could not be had: {command[0]}: {result.stderr[-300:]}")
