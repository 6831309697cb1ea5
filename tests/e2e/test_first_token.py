"""What the way through gRPC and the models adds to the engine's time to first token."""

import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT
from server import serving

DOCUMENTS = ("lighthouse", "observatory", "ferry_line", "bakery_cooperative")
MAX_OVERHEAD_SECONDS = 0.015
NUM_RUNS = 7
NUM_ROUNDS = 12


@pytest.mark.alone
def test_the_first_token_reaches_a_grpc_client_15_ms_after_the_engine_has_it(
    smollm2_engine_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from ttft_overhead import Server, measure

    client = [sys.executable, str(ROOT / "client" / "documents.py")]
    paths = [str(ROOT / "examples" / "documents" / f"{name}.txt") for name in DOCUMENTS]
    with serving(smollm2_engine_folder, tmp_path, num_threads=2) as server:
        subprocess.run([*client, "--url", server.grpc, "add", *paths], check=True)
        one = Server(server.grpc, "default")
        ids = [one.document_id(name) for name in DOCUMENTS]
        # The first that is in time: what else runs on the machine only adds.
        medians: list[float] = []
        while len(medians) < NUM_ROUNDS and min(medians, default=1) > MAX_OVERHEAD_SECONDS:
            medians.append(median_overhead(measure(one, ids, NUM_RUNS)))
    assert min(medians) <= MAX_OVERHEAD_SECONDS, medians


def median_overhead(runs: Sequence[Any]) -> float:
    assert len(runs) == NUM_RUNS
    return statistics.median(run.overhead_seconds for run in runs)
