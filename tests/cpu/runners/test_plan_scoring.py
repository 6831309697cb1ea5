"""Guided modes over a plan's runner, model.onnx and scoring.onnx executed in the plans' places."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from graph_session import GraphSession, plan_of, shape_of
from onnx_by_torch import torch_execution
from onnx_reference import Execution
from texts import random_ids

import legokv.engine.parts
from legokv import Engine, EngineSettings
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PREFILL, PlanLimits, scoring_profile
from legokv.checkpoint import load_weights
from legokv.chunks.chunk import Chunk
from legokv.engine.jobs import GenerateJob
from legokv.engine.request import GenerateRequest, Token
from legokv.errors import EngineMismatch, InvalidRequest, LegokvError, OutOfMemory, StepFailed
from legokv.export import export_scoring_onnx
from legokv.model.config import scoring_layers
from legokv.model.decoder import decoder_from_weights
from legokv.runners.page_store import PageStore
from legokv.runners.plan.runner import ScoringPlan, TensorRTRunner
from legokv.step.graph import IMPORTS, ScoringShape

LIMITS = PlanLimits(max_step_tokens=64, max_sequences=8, max_import_pages=4)
SETTINGS = EngineSettings(dtype="float32", pool_tokens=512, max_step_tokens=64, attention="torch")


@dataclass(frozen=True)
class Files:
    """A tiny engine's model.onnx and scoring.onnx, and what the latter is made for."""

    folder: Path
    model: Path
    scoring: Path
    shape: ScoringShape


@pytest.fixture(scope="module", params=IMPORTS)
def files(
    request: pytest.FixtureRequest,
    tiny_engine_folder: Callable[[str], Path],
    exported: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Files:
    folder = tiny_engine_folder("llama")
    model = read_engine_folder(folder).model
    decoder = decoder_from_weights(model, load_weights(folder, model, torch.float32))
    graph = shape_of(folder, "float32", request.param)
    shape = ScoringShape(graph, scoring_layers(model.num_layers))
    whole = exported("llama", "float32", request.param)
    scoring = export_scoring_onnx(decoder, shape, tmp_path_factory.mktemp("onnx"))
    return Files(folder, whole, scoring, shape)


@dataclass
class Scoring:
    """scoring.onnx in its plan's place: opened when `open` is called, which may raise first."""

    execution: Execution
    errors: list[Exception] = field(default_factory=list)
    sessions: list[GraphSession] = field(default_factory=list)

    def open(self) -> GraphSession:
        if self.errors:
            raise self.errors.pop(0)
        self.sessions.append(GraphSession(self.execution))
        return self.sessions[-1]


@pytest.fixture
def scoring(files: Files) -> Scoring:
    return Scoring(torch_execution(files.scoring))


@pytest.fixture
def planned(files: Files, scoring: Scoring, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """An engine over a plan's runner with a scoring plan."""
    plan, graph = plan_of(files.folder, "float32", LIMITS), files.shape.graph
    num_heads = read_engine_folder(files.folder).model.num_heads
    profile = scoring_profile(plan.profiles[PREFILL])
    store = PageStore(graph, SETTINGS.num_pages(graph.page_size), torch.device("cpu"))
    runner = TensorRTRunner(
        GraphSession(torch_execution(files.model)),
        plan,
        graph,
        store,
        ScoringPlan(scoring.open, files.shape, profile, num_heads),
    )
    with monkeypatch.context() as patch:
        patch.setattr(legokv.engine.parts, "open_runner", lambda *_: runner)
        return Engine.open(files.folder, settings=SETTINGS)


def prompt_of(engine: Engine) -> list[Chunk | list[int]]:
    chunks = [engine.compile(random_ids(n, length)) for n, length in enumerate((40, 17))]
    return [*chunks, random_ids(9, 7)]


@pytest.mark.parametrize("budget", [{"link_tokens": 4}, {"recompute_percent": 30}])
def test_guided_answers_over_a_plan_are_the_eager_model_s(
    files: Files, planned: Engine, scoring: Scoring, budget: dict[str, int]
) -> None:
    assert scoring.sessions == []
    eager = Engine.open(files.folder, settings=SETTINGS)
    found = []
    for engine in (eager, planned):
        prompt = prompt_of(engine)
        found.append(engine.prefill(prompt, mode="guided", **budget))
        plain = engine.prefill(prompt, mode="legolink", link_tokens=0)
        assert not torch.allclose(found[-1].logits, plain.logits, atol=1e-3)
    assert found[0].recomputed_tokens == found[1].recomputed_tokens > 0
    torch.testing.assert_close(found[1].logits, found[0].logits, rtol=0, atol=1e-4)
    planned.prefill(prompt, mode="guided", **budget)
    assert [len(session.runs) for session in scoring.sessions] == [2], "opened once"
    with pytest.raises(InvalidRequest, match=r"'guided-drift' moves .*: take mode 'guided', or"):
        planned.prefill(prompt, mode="guided-drift", **budget)


def answers_of(engine: Engine, jobs: Sequence[GenerateJob]) -> list[object]:
    """How many tokens each job had, or its error, all of them under way together."""
    while engine.step():
        pass
    found: list[object] = []
    for job in jobs:
        events = [job.queue.get() for _ in range(job.queue.qsize())]
        errors = [each for each in events if isinstance(each, LegokvError)]
        found.append(errors[0] if errors else sum(isinstance(each, Token) for each in events))
    return found


@pytest.mark.parametrize("files", ["stream"], indirect=True)
def test_without_room_for_the_scoring_plan_a_guided_request_alone_fails_and_a_later_one_passes(
    planned: Engine, scoring: Scoring
) -> None:
    prompt = prompt_of(planned)
    scoring.errors = [OutOfMemory("it takes 64 MiB, of which 2 MiB are free")]
    modes = ("legolink", "guided", "legolink")
    jobs = [planned.submit(GenerateRequest(prompt, 3, mode=mode)) for mode in modes]
    first, refused, last = answers_of(planned, jobs)
    assert (first, last) == (3, 3)
    assert isinstance(refused, OutOfMemory)
    assert str(refused) == "a step failed: it takes 64 MiB, of which 2 MiB are free"
    assert len(list(planned.generate(prompt, max_tokens=3, mode="guided"))) == 3
    assert planned.cache.num_leases == 0


@pytest.mark.parametrize("files", ["stream"], indirect=True)
def test_a_scoring_plan_that_did_not_open_is_not_tried_again_and_says_why_each_time(
    planned: Engine, scoring: Scoring
) -> None:
    prompt = prompt_of(planned)
    scoring.errors = [EngineMismatch("TensorRT made no execution context")]
    for _ in range(2):
        (refused,) = answers_of(
            planned, [planned.submit(GenerateRequest(prompt, 3, mode="guided"))]
        )
        assert isinstance(refused, StepFailed)
        assert "are refused until the engine is opened again: TensorRT made no" in str(refused)
    assert scoring.sessions == []
    assert len(list(planned.generate(prompt, max_tokens=3))) == 3
    assert planned.cache.num_leases == 0


@pytest.mark.parametrize("files", ["stream"], indirect=True)
def test_more_fresh_tokens_than_the_scoring_plan_holds_are_refused_with_the_numbers(
    planned: Engine, scoring: Scoring
) -> None:
    chunk = planned.compile(random_ids(1, 30))
    prompt = [chunk, random_ids(2, 80), chunk, random_ids(3, 5)]
    words = r"a request's fresh tokens are one step .*: T = 85 is not within 1 to 64; build it with"
    with pytest.raises(LegokvError, match=words):
        planned.prefill(prompt, mode="guided")
    assert scoring.sessions == []
    assert planned.prefill(prompt).fresh_tokens == 85
