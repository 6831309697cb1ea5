"""Twenty thousand short requests, refused and cancelled ones among them: does anything grow?

    PYTHONPATH=tests:tests/e2e out/venv/bin/python -m fuzz.soak

Prints what each process holds after every tenth of them, in MB: docs/security.md has some lines.
"""

import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fuzz.__main__ import SETTINGS, tiny_engine
from fuzz.request import Http
from fuzz.sending import Address, Sender
from fuzz.watching import Footprint, footprint
from server import serving

NUM_REQUESTS = 20_000
NUM_CLIENTS = 4
MOST_GROWTH_SHARE = 0.05
"""Of a process' memory between a tenth of the requests and all."""


def main() -> int:
    """0 if no process grew by more than a twentieth, nor shared memory or descriptors at all."""
    with tempfile.TemporaryDirectory(prefix="soak-") as folder:
        engine = tiny_engine(Path(folder))
        with (
            Path(folder, "log").open("wb") as log,
            serving(engine, Path(folder, "cache"), log=log, **SETTINGS) as server,
        ):
            address = Address(server.http.removeprefix("http://"), server.grpc)
            prints = list(footprints(address, server.process.pid))
    print(table(prints))
    first, last = prints[0], prints[-1]
    return int(first.processes != last.processes or bool(growing(first, last)))


def footprints(address: Address, pid: int) -> Iterator[Footprint]:
    """One after each tenth of the requests."""
    part = NUM_REQUESTS // 10
    with ThreadPoolExecutor(NUM_CLIENTS) as threads:
        for start in range(0, NUM_REQUESTS, part):
            list(threads.map(lambda n: ask(address, n), range(start, start + part)))
            yield footprint(pid)


def ask(address: Address, number: int) -> None:
    """Of ten requests six are answered, two refused, two left by their client."""
    refused, left = number % 5 == 3, number % 5 == 4
    tokens = -1 if refused else 200 if left else 1
    stream = b"true" if left else b"false"
    body = b'{"text_input": "Who?", "max_tokens": %d, "stream": %s}' % (tokens, stream)
    verb = "generate_stream" if left else "generate"
    outcome = Sender(address).send(Http(f"/v2/models/generate/{verb}", body, leaves=left))
    expected = "400" if refused else "left" if left else "200"
    assert outcome.status == expected, outcome


def growing(first: Footprint, last: Footprint) -> list[str]:
    """Names of processes that hold more than they should."""
    return [
        name
        for name, size in last.memory.items()
        if size > first.memory[name] * (1 + MOST_GROWTH_SHARE)
        or last.descriptors[name] > first.descriptors[name] + NUM_CLIENTS
    ]


def table(prints: list[Footprint]) -> str:
    names = list(prints[0].memory)
    heads = ["requests", *(name.split()[0] for name in names), "shared", "descriptors"]
    lines = ["| " + " | ".join(heads) + " |", "|" + "---|" * len(heads)]
    for number, one in enumerate(prints, 1):
        sizes = [f"{one.memory[name] / 1e6:.0f}" for name in names]
        shared, open_files = f"{one.shared_memory / 1e6:.0f}", str(sum(one.descriptors.values()))
        cells = [f"{number * NUM_REQUESTS // 10:,}", *sizes, shared, open_files]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
