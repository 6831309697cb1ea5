"""TensorRT-RTX plans built elsewhere, opened on this GPU. A refusal is recorded in its own words.

TensorRT-RTX's documentation does not list every architecture: 9.0, for one.
"""

from pathlib import Path

import pytest
import torch

from legokv.engine_folder import read_engine_folder

ENGINES = Path(__file__).resolve().parents[2] / "out" / "engines"
PLAN = "tensorrt-rtx.plan"
# With none there the name stands in, and its test fails at reading the folder.
PLANS = sorted(ENGINES.glob(f"*/{PLAN}")) or [ENGINES / "no-engine-with-a-plan" / PLAN]


@pytest.fixture(scope="module")
def runtime():
    """Opens a plan with a plugin library: the engine or None, and TensorRT's errors."""
    trt = pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX is not installed")

    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: object, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)

    def open_plan(plan: Path, library: Path):
        log = Log()
        trt.get_plugin_registry().load_library(str(library))
        opened = trt.Runtime(log)
        return opened, opened.deserialize_cuda_engine(plan.read_bytes()), log.errors

    return open_plan


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: plan.parent.name)
def test_a_plan_opens_with_its_inputs_and_two_profiles(runtime, gpu: torch.device, plan: Path):
    facts = read_engine_folder(plan.parent)
    _kept, engine, errors = runtime(plan, plan.parent / facts.plan.library_file)
    if engine is None:
        pytest.xfail(f"TensorRT-RTX refused {torch.cuda.get_device_name()}: {'; '.join(errors)}")
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    assert {"input_ids", "pages", "pool_0", "pool_out_0", "logits"} <= names
    assert engine.num_optimization_profiles == 2
