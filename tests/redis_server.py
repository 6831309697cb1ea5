"""A real Redis or Valkey for the tests, which may be killed, frozen and started again."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from debian_program import Program, debian_program
from ports import free_port

PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "libatomic1")
START_SECONDS = 60.0


@dataclass
class RedisServer:
    """One server process of ours."""

    program: Program
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
        command = [self.program.path, "--port", str(self.port), "--bind", "127.0.0.1"]
        kept = ["--dir", self.folder, "--save", "", "--appendonly", "yes"]
        self.process = subprocess.Popen(
            [*command, *kept, *self.options],
            env=self.program.environment,
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
    program = debian_program(("valkey-server", "redis-server"), PACKAGES)
    server = RedisServer(program, folder, free_port(), options)
    try:
        yield server
    finally:
        server.kill()
