"""What a server shows on its metrics port, as numbers by name and labels."""

import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from server import RunningServer

from legokv.serving.metrics import PUBLISH_SECONDS

SETTLED_SECONDS = 60
_LINE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>[^}]*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True)
class Scrape:
    """All series of one moment."""

    values: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def __call__(self, name: str, **labels: str) -> float:
        return self.values[name, frozenset(labels.items())]

    def series(self, name: str) -> list[dict[str, str]]:
        """The labels of all series of a name."""
        return [dict(labels) for found, labels in self.values if found == name]

    def ours(self) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
        return {key: value for key, value in self.values.items() if key[0].startswith("legokv_")}

    def since(self, before: "Scrape") -> "Scrape":
        """How much each series has grown."""
        return Scrape(
            {key: value - before.values.get(key, 0) for key, value in self.values.items()}
        )


def scrape(server: RunningServer) -> Scrape:
    with urllib.request.urlopen(server.metrics, timeout=60) as response:
        text = response.read().decode()
    found = (_LINE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))
    return Scrape(
        {
            (match["name"], frozenset(_LABEL.findall(match["labels"] or ""))): float(match["value"])
            for match in found
            if match is not None
        }
    )


def at_rest(server: RunningServer) -> Scrape:
    """What is shown once nothing runs: ours do not change between two publications any more."""
    before, now = None, settled(server, is_idle)
    while before is None or before.ours() != now.ours():
        time.sleep(1.5 * PUBLISH_SECONDS)
        before, now = now, scrape(server)
    return now


def is_idle(now: Scrape) -> bool:
    return now("legokv_requests_running") == now("legokv_requests_waiting") == 0


def settled(server: RunningServer, holds: Callable[[Scrape], bool]) -> Scrape:
    """The first scrape that holds; the last one, if none does for a minute."""
    deadline = time.monotonic() + SETTLED_SECONDS
    now = scrape(server)
    while not holds(now) and time.monotonic() < deadline:
        time.sleep(0.1)
        now = scrape(server)
    return now
