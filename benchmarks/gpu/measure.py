"""All measurements in one process: python measure.py --library SO --output JSON

The file is written after every row, so that a later one that hangs or fails takes nothing away.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attention
import ceilings
import imports
import step
import torch
from session import Session
from shape import LLAMA_8B, TINY
from work import SMALL, WorkSizes

from legokv.errors import LegokvError
from legokv.kernels.gpu import Launchers

Measure = Callable[[Session], Iterator[dict[str, Any]]]
MEASUREMENTS: dict[str, Measure] = {
    "ceilings": ceilings.measure,
    "attention": attention.measure,
    "import": imports.measure,
    "step": step.measure,
}
# Seconds on a GPU, after which a measurement begins no further row.
SHARES = {"ceilings": 10, "attention": 100, "import": 15, "step": 90}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", choices=MEASUREMENTS, nargs="+", default=[*MEASUREMENTS])
    return parser.parse_args()


def open_session(library: Path, device: str, rounds: int = 12) -> Session:
    """On a CPU, tiny sizes: that shows that the script runs, and nothing else."""
    on_gpu = device == "cuda"
    return Session(
        device=torch.device(device),
        launchers=Launchers(library),
        model=LLAMA_8B if on_gpu else TINY,
        sizes=WorkSizes() if on_gpu else SMALL,
        cold_bytes=256 * 2**20,
        max_pools=16 if on_gpu else 1,
        rounds=rounds if on_gpu else 1,
        import_pages=64 if on_gpu else 2,
        sweep_keys=32_000 if on_gpu else 10_000,
    )


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    session = open_session(arguments.library, arguments.device, arguments.rounds)
    measured: dict[str, Any] = {"failed": {}, "left_out": []}

    def keep() -> None:
        arguments.output.write_text(json.dumps(measured), encoding="utf-8")

    for name in arguments.only:
        rows = measured[name] = []
        try:
            for row in within(SHARES[name], MEASUREMENTS[name](session), name, measured):
                rows.append(row)
                print(f"{name}: {row.get('step') or row.get('source') or 'measured'}", flush=True)
                keep()
        except (RuntimeError, LegokvError) as error:
            measured["failed"][name] = f"{type(error).__name__}: {error}"[:500]
            print(f"{name} failed: {measured['failed'][name]}", flush=True)
        keep()
    if measured["failed"]:
        raise SystemExit(1)


def within(
    seconds: float, rows: Iterator[dict[str, Any]], name: str, measured: dict[str, Any]
) -> Iterator[dict[str, Any]]:
    """The rows until the time is over; that some were left out is written down."""
    ends = time.monotonic() + seconds
    for row in rows:
        yield row
        if time.monotonic() > ends:
            measured["left_out"].append(f"{name} after {row.get('step', 'a row')}")
            return


if __name__ == "__main__":
    main()
