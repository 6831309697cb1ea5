"""The lockstep that a GPU will hold an opened plan to, with model.onnx executed in its place."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from graph_session import GraphSession, graph_runner, graph_scoring
from onnx_by_torch import torch_execution
from paths import TESTS

from legokv.built.plan_limits import DECODE, PREFILL, PlanLimits
from legokv.step.graph import IMPORTS, ImportBy

GPU_TESTS = TESTS / "gpu"


@pytest.fixture
def lockstep(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(GPU_TESTS)
    import plan_lockstep

    return plan_lockstep


@pytest.mark.parametrize("imports", IMPORTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_plans_runner_gives_the_cpu_s_logits_for_a_whole_conversation(
    lockstep: ModuleType,
    tiny_engine_folder: Callable[[str], Path],
    exported: Callable[..., Path],
    tmp_path: Path,
    dtype: str,
    imports: ImportBy,
) -> None:
    folder = tiny_engine_folder("llama")
    session = GraphSession(torch_execution(exported("llama", dtype, imports)))
    limits = PlanLimits(lockstep.STEP_TOKENS, lockstep.NUM_SEQUENCES, max_import_pages=4)
    scoring = graph_scoring(folder, dtype, tmp_path, limits, imports)
    runner = graph_runner(folder, dtype, session, lockstep.NUM_PAGES, limits, imports, scoring)
    num_steps = lockstep.hold_to_the_cpu(folder, runner, dtype, seed=1)
    assert num_steps == len(session.runs) == 14
    # A step that pages arrive with by the graph's own nodes is none of decode steps.
    last = PREFILL if imports == "plugin" else DECODE
    # The last token of a chunk of 33, computed 32 at a time, is a decode step like an answer's.
    profiles = [PREFILL, DECODE, *[PREFILL] * 4, *[DECODE] * 7, last]
    assert [profile for profile, _ in session.runs] == profiles
    assert session.runs[-1][1].get("import_pages") == ((2,) if imports == "plugin" else None)
