"""Guided modes over a plan's runner, model.onnx and scoring.onnx executed in the plans' places."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graph_session import GraphSession, export_engine, graph_runner, plan_of, shape_of
from onnx_by_torch import torch_execution
from texts import random_ids

import legokv.engine.parts
from legokv import Engine, EngineSettings
from legokv.built.folder import read_engine_folder
from legokv.built.plan_limits import PREFILL, PlanLimits, SizeRange
from legokv.checkpoint import load_weights
from legokv.errors import InvalidRequest
from legokv.export import export_scoring_onnx
from legokv.model.config import scoring_layers
from legokv.model.decoder import decoder_from_weights
from legokv.runners.plan.runner import ScoringPlan, TensorRTRunner
from legokv.step.graph import IMPORTS, ImportBy, ScoringShape

LIMITS = PlanLimits(max_step_tokens=512, max_sequences=8, max_import_pages=4)
SETTINGS = EngineSettings(dtype="float32", pool_tokens=512, max_step_tokens=512, attention="torch")


def runner_of(folder: Path, target: Path, imports: ImportBy) -> TensorRTRunner:
    facts = read_engine_folder(folder)
    session = GraphSession(torch_execution(export_engine(folder, "float32", target, imports)))
    layers = scoring_layers(facts.model.num_layers)
    shape = ScoringShape(shape_of(folder, "float32", imports), layers)
    weights = load_weights(folder, facts.model, torch.float32)
    path = export_scoring_onnx(decoder_from_weights(facts.model, weights), shape, target)
    ranges = plan_of(folder, "float32", LIMITS).profiles[PREFILL].ranges
    profile = plan_of(folder, "float32", LIMITS).profiles[PREFILL]
    one = replace(profile, ranges={**ranges, "B": SizeRange(1, 1, 1)})
    scoring = ScoringPlan(GraphSession(torch_execution(path)), shape, one, facts.model.num_heads)
    num_pages = SETTINGS.num_pages(facts.page_size)
    runner = graph_runner(folder, "float32", session, num_pages, LIMITS, imports)
    return TensorRTRunner(session, runner._plan, shape.graph, runner._store, scoring)


@pytest.mark.parametrize("imports", IMPORTS)
@pytest.mark.parametrize("budget", [{"link_tokens": 4}, {"recompute_percent": 30}])
def test_guided_answers_over_a_plan_are_the_eager_model_s(
    tiny_engine_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    imports: ImportBy,
    budget: dict[str, int],
) -> None:
    folder = tiny_engine_folder("llama")
    eager = Engine.open(folder, settings=SETTINGS)
    runner = runner_of(folder, tmp_path, imports)
    monkeypatch.setattr(legokv.engine.parts, "open_runner", lambda *_: runner)
    planned = Engine.open(folder, settings=SETTINGS)
    found = []
    for engine in (eager, planned):
        chunks = [engine.compile(random_ids(n, length)) for n, length in enumerate((40, 17))]
        prompt = [*chunks, random_ids(9, 7)]
        found.append(engine.prefill(prompt, mode="guided", **budget))
        plain = engine.prefill(prompt, mode="legolink", link_tokens=0)
        assert not torch.allclose(found[-1].logits, plain.logits, atol=1e-3)
    assert found[0].recomputed_tokens == found[1].recomputed_tokens > 0
    torch.testing.assert_close(found[1].logits, found[0].logits, rtol=0, atol=1e-4)
    assert len(runner._scoring.session.runs) == 1
    with pytest.raises(InvalidRequest, match=r"'guided-drift' moves .*: take mode 'guided', or"):
        planned.prefill(prompt, mode="guided-drift", **budget)
