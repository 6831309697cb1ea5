"""What the way through gRPC and the models adds to the engine's time to first token."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from server import serving

REPOSITORY = Path(__file__).resolve().parents[2]
DOCUMENTS = ("lighthouse", "observatory", "ferry_line", "bakery_cooperative")
MAX_OVERHEAD_SECONDS = 0.015
NUM_RUNS = 11


def test_the_first_token_reaches_a_grpc_client_15_ms_after_the_engine_has_it(
    smollm2_engine_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from ttft_overhead import Server, measure

    client = [sys.executable, str(REPOSITORY / "client" / "documents.py")]
    paths = [str(REPOSITORY / "examples" / "documents" / f"{name}.txt") for name in DOCUMENTS]
    with serving(smollm2_engine_folder, tmp_path, num_threads=2) as server:
        subprocess.run([*client, "--url", server.grpc, "add", *paths], check=True)
        one = Server(server.grpc, "default")
        runs = measure(one, [one.document_id(name) for name in DOCUMENTS], NUM_RUNS)
    assert len(runs) == NUM_RUNS
    assert statistics.median(run.overhead_seconds for run in runs) <= MAX_OVERHEAD_SECONDS
