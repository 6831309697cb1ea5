"""One measurement in a process of its own: python measure.py NAME --library SO --output JSON"""

import argparse
import json
from pathlib import Path

import attention
import ceilings
import imports
import step
import torch
from session import Session
from shape import LLAMA_8B, TINY
from work import SMALL, WorkSizes

from legokv.kernels.gpu import Launchers

MEASUREMENTS = {
    "ceilings": ceilings.measure,
    "attention": attention.measure,
    "import": imports.measure,
    "step": step.measure,
}


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=MEASUREMENTS)
    parser.add_argument("--library", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


def open_session(arguments: argparse.Namespace) -> Session:
    """On a CPU, tiny sizes: that shows that the script runs, and nothing else."""
    on_gpu = arguments.device == "cuda"
    return Session(
        device=torch.device(arguments.device),
        launchers=Launchers(arguments.library),
        model=LLAMA_8B if on_gpu else TINY,
        sizes=WorkSizes() if on_gpu else SMALL,
        cold_bytes=256 * 2**20,
        max_pools=16 if on_gpu else 1,
        rounds=arguments.rounds if on_gpu else 1,
    )


def main() -> None:
    arguments = parse_arguments()
    torch.manual_seed(0)
    measured = MEASUREMENTS[arguments.name](open_session(arguments))
    arguments.output.write_text(json.dumps(measured), encoding="utf-8")
    print(json.dumps(measured, indent=1))


if __name__ == "__main__":
    main()
