"""A real Prometheus with the example's configuration, asking a server of the tests."""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from debian_program import debian_program
from paths import ROOT
from ports import free_port
from server import RunningServer

EXAMPLE = ROOT / "examples" / "monitoring" / "prometheus.yml"
START_SECONDS = 60.0


@dataclass(frozen=True)
class Prometheus:
    """Where it listens."""

    url: str

    def values(self, expression: str) -> list[float]:
        """What the expression is now, a value for each of its series; an error is an exception."""
        query = urllib.parse.urlencode({"query": expression})
        with urllib.request.urlopen(f"{self.url}/api/v1/query?{query}", timeout=10) as response:
            reply: dict[str, Any] = json.load(response)
        assert reply["status"] == "success", reply
        return [float(series["value"][1]) for series in reply["data"]["result"]]

    def wait_for(self, expression: str) -> None:
        """Return once the expression has a value above 0."""
        deadline = time.monotonic() + START_SECONDS
        while not any(value > 0 for value in self.values(expression)):
            assert time.monotonic() < deadline, f"{expression} stayed empty or 0"
            time.sleep(0.2)


@contextmanager
def asking(server: RunningServer, folder: Path) -> Iterator[Prometheus]:
    """Prometheus that asks the server every second, ended with the block."""
    program = debian_program(("prometheus",), ("prometheus",), "--version")
    (folder / "prometheus.yml").write_text(_configuration(server))
    address = f"127.0.0.1:{free_port()}"
    process = subprocess.Popen(
        [
            program.path,
            f"--config.file={folder}/prometheus.yml",
            f"--storage.tsdb.path={folder}/data",
            f"--web.listen-address={address}",
            "--log.level=error",
        ],
        env=program.environment,
    )
    try:
        _wait_until_ready(process, f"http://{address}")
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait(START_SECONDS)


def _configuration(server: RunningServer) -> str:
    """The example's text with this server's port, asked more often than a person would."""
    text = EXAMPLE.read_text()
    port = urllib.parse.urlsplit(server.metrics).port
    places = {"127.0.0.1:8002": f"127.0.0.1:{port}", "scrape_interval: 5s": "scrape_interval: 1s"}
    for old, new in places.items():
        assert text.count(old) == 1, f"the example has no single {old!r}"
        text = text.replace(old, new)
    return text


def _wait_until_ready(process: "subprocess.Popen[bytes]", url: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, "prometheus ended while starting"
        assert time.monotonic() < deadline, f"not ready after {START_SECONDS} s"
        try:
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return
        except OSError:
            time.sleep(0.1)
