"""`make fuzz`: damaged checkpoints, engines, caches and archives, and how commands take them.

Files that met a fault are kept below out/fuzz/files; what is mended becomes a test.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from fuzz.files import Fault, faults
from fuzz.subjects import caches, checkpoints
from paths import OUT

MOST_KEPT = 50


def main() -> int:
    """0 if every command took its files or refused them in a sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--of", nargs="+", help="only of these: llama, gguf, cache, archive …")
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        seen, met = _search(Path(folder), parsed)
    print("| damaged | commands run | faults |\n|---|---|---|")
    for name, number in seen.items():
        print(f"| {name} | {number:,} | {sum(subject == name for subject, _ in met)} |")
    for number, (subject, fault) in enumerate(met[:MOST_KEPT]):
        kept = _kept(f"{subject}-{parsed.seed}-{number}", fault)
        print(f"{kept}: {fault.why.strip()[-600:]}")
    return int(bool(met))


def _search(
    folder: Path, parsed: argparse.Namespace
) -> tuple[Counter[str], list[tuple[str, Fault]]]:
    """How many commands read each subject's copies, and what went wrong."""
    ending = time.monotonic() + 60 * parsed.minutes
    subjects = [
        each
        for each in chain(checkpoints(folder), caches(folder))
        if not parsed.of or each.name in parsed.of
    ]
    trials = {each.name: faults(each, folder / "work", parsed.seed) for each in subjects}
    seen, met = Counter[str](), list[tuple[str, Fault]]()
    while time.monotonic() < ending:
        for each in subjects:
            # All commands on one copy: the next subject's takes its place.
            for _ in each.commands:
                fault = next(trials[each.name])
                seen[each.name] += 1
                if fault:
                    met.append((each.name, fault))
    return seen, met


def _kept(name: str, fault: Fault) -> Path:
    path = OUT / "fuzz" / "files" / name / fault.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(fault.content)
    return path


if __name__ == "__main__":
    sys.exit(main())
