"""`make fuzz`, `make attack`: a server of its own under drawn requests, and a table of what it saw.

Requests that met a fault are kept below out/fuzz; what is mended goes to tests/fuzz/corpus.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from fuzz.sending import Address
from fuzz.trial import Trial, keep, run_trial, table
from paths import OUT
from server import serving
from tiny_checkpoints import make_tiny_checkpoint


def main() -> int:
    """0 if nothing was wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=20261129)
    parser.add_argument("--engine", type=Path, help="instead of a tiny one that is made")
    parser.add_argument("--kills", action="store_true", help="kill and freeze processes as well")
    parsed = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        engine = parsed.engine or tiny_engine(Path(folder))
        log = Path(folder, "log")
        with (
            log.open("wb") as file,
            serving(engine, Path(folder, "cache"), log=file, **SETTINGS) as server,
        ):
            address = Address(server.http.removeprefix("http://"), server.grpc)
            trial = Trial(parsed.seed, parsed.minutes * 60, with_kills=parsed.kills)
            report = run_trial(address, server.process.pid, log, trial)
    print(table(report))
    for file in keep(report, OUT / "fuzz"):
        print(f"kept {file}")
    for line in (*report.log_lines[:20], *report.wrong_answers[:5], *report.failed_answers[:5]):
        print(line[:400])
    wrong = [report.faults, report.wrong_answers]
    if not parsed.kills:
        wrong += [report.log_lines, report.failed_answers, report.lost_processes()]
    return int(any(wrong))


SETTINGS = {"max_document_bytes": 20_000, "max_documents": 16, "pool_tokens": 8192}


def tiny_engine(folder: Path) -> Path:
    from legokv.build.engine import BuildSettings, build_engine_folder

    settings = BuildSettings("llama", dtype="bfloat16")
    build_engine_folder(make_tiny_checkpoint("llama", folder / "ckpt"), folder / "engine", settings)
    return folder / "engine"


if __name__ == "__main__":
    sys.exit(main())
