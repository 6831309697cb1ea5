"""What Triton, its models and gRPC add to the engine's time to first token, on a running server.

python benchmarks/ttft_overhead.py --documents lighthouse observatory ferry_line
"""

import argparse
import platform
import statistics
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "client"))
from connection import Server, add_connection_options, exit_status

QUESTION = "What is this about? Answer in one short sentence."
ENGINE_TIME = "engine_time_to_first_token_seconds"


@dataclass(frozen=True)
class FirstToken:
    """Seconds until the first text: at the client, and by the engine's own clock."""

    client_seconds: float
    engine_seconds: float

    @property
    def overhead_seconds(self) -> float:
        return self.client_seconds - self.engine_seconds


def first_token(server: Server, document_ids: list[str]) -> FirstToken:
    """One short streamed answer, timed."""
    fields = {"text_input": QUESTION, "document_ids": document_ids, "max_tokens": 4, "stream": True}
    started = time.monotonic()
    with closing(server.answers(fields)) as replies:
        next(replies)
        client_seconds = time.monotonic() - started
        *_, last = replies
    return FirstToken(client_seconds, last[ENGINE_TIME])


def measure(server: Server, document_ids: list[str], num_runs: int) -> list[FirstToken]:
    """`num_runs` answers one after another, after two that are not counted."""
    return [first_token(server, document_ids) for _ in range(num_runs + 2)][2:]


def report(arguments: argparse.Namespace) -> int:
    server = Server(arguments.url, arguments.namespace)
    ids = [server.document_id(name) for name in arguments.documents]
    runs = measure(server, ids, arguments.runs)
    print(f"{platform.processor() or platform.machine()}, {len(ids)} documents, {len(runs)} runs")
    for name in ("client_seconds", "engine_seconds", "overhead_seconds"):
        values = sorted(getattr(run, name) for run in runs)
        print(
            f"{name:17} median {1000 * statistics.median(values):8.2f} ms, "
            f"from {1000 * values[0]:.2f} to {1000 * values[-1]:.2f}"
        )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", nargs="+", required=True, help="ids or names")
    parser.add_argument("--runs", type=int, default=15)
    add_connection_options(parser)
    arguments = parser.parse_args()
    return exit_status(lambda: report(arguments))


if __name__ == "__main__":
    sys.exit(main())
