"""Opens an engine folder's plan on this machine's GPU, in the runtime of its flavour."""

import importlib
from pathlib import Path

import torch

from legokv.built.plan_facts import PlanFacts
from legokv.errors import EngineMismatch
from legokv.plan.backends import PLAN_BACKENDS
from legokv.runners.llm_session import LLMSession
from legokv.runners.plan.session import PlanSession
from legokv.runners.tensorrt_session import TensorRTSession


def open_plan(folder: Path, plan: PlanFacts) -> PlanSession:
    """The engine folder's plan, ready to run; EngineMismatch if the runtime refuses it."""
    trt = importlib.import_module(PLAN_BACKENDS[plan.flavour].modules[-1])
    if trt.get_plugin_registry().load_library(str(folder / plan.library_file)) is None:
        raise EngineMismatch(f"{plan.flavour} could not load the plugins of {plan.library_file}")
    content = (folder / plan.plan_file).read_bytes()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    if plan.flavour == "tensorrt-llm":
        runtime = importlib.import_module("tensorrt_llm.runtime")
        return LLMSession(runtime, trt, content, stream)
    return TensorRTSession(trt, content, stream)
