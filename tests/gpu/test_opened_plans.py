"""TensorRT-RTX plans built elsewhere, opened and run on this GPU. A refusal is recorded in its own
words.

TensorRT-RTX's documentation does not list every architecture: 9.0, for one.
"""

from pathlib import Path

import pytest
import torch
from paths import ROOT
from plan_lockstep import NUM_PAGES, STEP_TOKENS, hold_to_the_cpu

from legokv.built.folder import read_engine_folder
from legokv.built.settings import EngineSettings
from legokv.runners.opening import open_runner
from legokv.runners.plan.sessions import with_plugins

ENGINES = ROOT / "out" / "engines"
PLAN = "tensorrt-rtx.plan"
# With none there the name stands in, and its test fails at reading the folder.
PLANS = sorted(ENGINES.glob(f"*/{PLAN}")) or [ENGINES / "no-engine-with-a-plan" / PLAN]


@pytest.fixture(params=PLANS, ids=lambda plan: plan.parent.name)
def plan(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def engine(plan: Path, gpu: torch.device):
    """The plan as TensorRT-RTX opens it; if that refuses, the test ends with its words."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    log = Log()
    facts = read_engine_folder(plan.parent)
    with_plugins(plan.parent, facts.plan)
    runtime = trt.Runtime(log)
    opened = runtime.deserialize_cuda_engine(plan.read_bytes())
    if opened is None:
        pytest.xfail(f"TensorRT-RTX refused {torch.cuda.get_device_name()}: {log.errors}")
    yield opened
    # An engine must not outlive its runtime.
    del opened, runtime


def test_a_plan_opens_with_its_inputs_and_profiles(engine, plan: Path, record_property):
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    assert {"input_ids", "pages", "pool_0", "pool_out_0", "logits"} <= names
    num_profiles = len(read_engine_folder(plan.parent).plan.profiles)
    assert engine.num_optimization_profiles == num_profiles
    facts = f"{engine.num_layers} layers, {len(names)} tensors, {num_profiles} profiles"
    record_property("fact", f"{plan.parent.name} opened: {facts}, {plan.stat().st_size:,} bytes")


def test_an_opened_plan_gives_the_cpu_s_logits(engine, plan: Path, seed: int, record_property):
    """Every regime, an import, and the CUDA graphs of decode steps that repeat their shape."""
    facts = read_engine_folder(plan.parent)
    settings = EngineSettings(
        runner="plan", pool_tokens=NUM_PAGES * facts.page_size, max_step_tokens=STEP_TOKENS
    )
    runner = open_runner(plan.parent, facts, settings)
    steps = hold_to_the_cpu(plan.parent, runner, facts.dtype, seed)
    record_property("fact", f"{plan.parent.name}: {steps} steps of the plan gave the CPU's logits")
