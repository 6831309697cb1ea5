"""The whole system in one go: build, serve, register documents, ask, compare. `make run` runs it.

Everything goes through the commands a user has; it stops what it started, also on Ctrl-C.
With --stay, as `make demo` asks, the server stays up for the page and the API until then.
"""

import argparse
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"
ENGINE = ROOT / "out" / "engines" / "llama"
CACHE = ROOT / "out" / "cache"
STOP_SECONDS = 30


@dataclass(frozen=True)
class Asked:
    """One question's usage, answered by linking and by computing everything."""

    question: str
    linked: dict[str, Any]
    full: dict[str, Any]


def python(script: str, *arguments: str) -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


@contextmanager
def server(api_port: str) -> Iterator[dict[str, Any]]:
    """A server on free ports, but for the API's, for the length of the block: its addresses."""
    command = [sys.executable, "-m", "legokv.cli", "serve", "--engine", str(ENGINE)]
    command += ["--cache-dir", str(CACHE), "--format", "json", "--request-log", "off"]
    command += ["--api-port", api_port]
    for port in ("http", "grpc", "metrics"):
        command += [f"--{port}-port", "auto"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield addresses(process)
    finally:
        process.terminate()
        process.wait(STOP_SECONDS)


def addresses(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None, "the server's output is a pipe"
    for line in process.stdout:
        event = json.loads(line)
        if event["event"] == "ready":
            return dict(event)
    raise SystemExit(f"the server ended before it was ready, status {process.wait()}")


def answer(url: str, question: dict[str, Any], *options: str) -> dict[str, Any]:
    """Print the answer as it comes; what it took."""
    command = python("client/ask.py", question["question"], "--url", url, "--format", "json")
    command += ["--max-tokens", "40", *options, "--documents", *question["documents"]]
    usage: dict[str, Any] = {}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None, "the client's output is a pipe"
        for line in process.stdout:
            usage = json.loads(line)
            print(usage["text_output"], end="", flush=True)
    print(flush=True)
    if process.returncode:
        raise SystemExit(process.returncode)
    return usage


def ask_all(url: str) -> list[Asked]:
    asked = []
    for question in json.loads((EXAMPLES / "questions.json").read_text(encoding="utf-8")):
        print(f"\n{question['question']}\n  over {', '.join(question['documents'])}")
        print("  linked:         ", end="", flush=True)
        linked = answer(url, question)
        print("  all recomputed: ", end="", flush=True)
        asked.append(Asked(question["question"], linked, answer(url, question, "--full")))
    return asked


def print_table(asked: list[Asked]) -> None:
    counts = ("prompt", "cached", "recomputed", "fresh")
    columns = [*counts, "TTFT linked", "TTFT full", "full/linked"]
    print("\nquestion  " + "  ".join(f"{column:>11}" for column in columns))
    for number, one in enumerate(asked, 1):
        linked, full = (u["time_to_first_token_seconds"] for u in (one.linked, one.full))
        cells = [f"{one.linked[f'{count}_tokens']:>11}" for count in counts]
        cells += [f"{linked:>9.3f} s", f"{full:>9.3f} s", f"{full / linked:>11.1f}"]
        print(f"{number:>8}  " + "  ".join(cells))
    print("TTFT: from the question's arrival at the server to its first token.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stay", action="store_true", help="keep the server until Ctrl-C")
    parser.add_argument("--api-port", help="the API's; with --stay 8080, else a free one")
    parsed = parser.parse_args()
    subprocess.run(python("build/build_engine.py", "--model", "llama"), check=True)
    print("Starting Triton Inference Server", flush=True)
    with server(parsed.api_port or ("8080" if parsed.stay else "auto")) as places:
        url = places["grpc"]
        add = python("client/documents.py", "--url", url, "add", str(EXAMPLES / "documents"))
        subprocess.run(add, check=True)
        print_table(ask_all(url))
        if parsed.stay:
            print(f"\nThe page and the API are at {places['api']} until Ctrl-C.", flush=True)
            signal.pause()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\ninterrupted; the server is stopped", file=sys.stderr)
        sys.exit(130)
    except subprocess.CalledProcessError as error:
        sys.exit(error.returncode)
