"""The same drawn requests each time: what they do to a server, to others' answers and its log."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fuzz.judging import fault_of
from fuzz.request import read
from fuzz.sending import Address, Sender
from fuzz.trial import Trial, keep, run_trial, table
from server import RunningServer, serving

from legokv.build.engine import BuildSettings, build_engine_folder

CORPUS = sorted((Path(__file__).parents[1] / "fuzz" / "corpus").glob("*.json"))
TRIAL = Trial(seed=1, num_requests=2000, settled_share=0.5)
MOST_GROWTH = 48 * 2**20
"""Of a process in that trial's second half, in bytes: 16 KiB for each of 3 x 1,000 requests. It was
3 MiB at most; while a front holds long bodies it is larger by 20. `make soak` looks for less.
"""
MOST_DESCRIPTORS = 8


@pytest.fixture(scope="module")
def bfloat16_engine(
    tiny_checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """In the type whose bits are promised to be the same in any company: docs/serving.md."""
    folder = tmp_path_factory.mktemp("bfloat16") / "engine"
    build_engine_folder(tiny_checkpoint("llama"), folder, BuildSettings("llama"))
    return folder


@pytest.mark.alone
def test_drawn_requests_end_nothing_and_change_no_answer(
    bfloat16_engine: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    log = tmp_path / "log"
    limits = {"max_document_bytes": 20_000, "max_documents": 16, "pool_tokens": 8192}
    with (
        log.open("wb") as file,
        serving(bfloat16_engine, tmp_path / "cache", log=file, **limits) as server,
    ):
        report = run_trial(address(server), server.process.pid, log, TRIAL)
    kept = keep(report, tmp_path / "faults")
    record_property("fact", f"{report.requests.total()} drawn requests in {report.seconds:.0f} s")
    assert not report.lost_processes(), table(report)
    assert not report.faults, [file.read_text()[:1000] for file in kept]
    assert not report.log_lines
    assert not report.wrong_answers
    assert not report.failed_answers
    assert report.bystander_answers > 10
    assert {n: g for n, g in report.growth().items() if g[0] > MOST_GROWTH} == {}
    assert {n: g for n, g in report.growth().items() if g[1] > MOST_DESCRIPTORS} == {}


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_what_did_harm_once_does_none(server: RunningServer, file: Path) -> None:
    request, sender = read(file), Sender(address(server))
    processes = server.processes()
    assert fault_of(request, sender.send(request)) is None
    sender.close()
    assert server.ask(text_input="Who?", max_tokens=2)["generated_tokens"] == 2
    assert server.processes() == processes


def address(server: RunningServer) -> Address:
    return Address(server.http.removeprefix("http://"), server.grpc)
