"""Opens an engine folder's plan on this machine's GPU, in the runtime of its flavour."""

import importlib
import logging
import os
from collections import deque
from pathlib import Path
from typing import Any, BinaryIO

import torch

from legokv.built.plan_facts import NO_STREAMING, WEIGHT_STREAMING, PlanFacts
from legokv.built.plan_limits import PREFILL
from legokv.errors import EngineMismatch, OutOfMemory, StepFailed
from legokv.plan.backends import PLAN_BACKENDS
from legokv.runners.plan.contexts import (
    ContextSteps,
    PlanSession,
    StepGraphs,
    Tensors,
    addresses,
    context_of,
)

log = logging.getLogger(__name__)


def open_plan(folder: Path, plan: PlanFacts, file: BinaryIO, num_profiles: int) -> PlanSession:
    """The plan in `file`, one of the engine folder's; EngineMismatch if the runtime refuses it."""
    trt = with_plugins(folder, plan)
    content = file.read()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    if plan.flavour == "tensorrt-llm":
        runtime = _imported("tensorrt_llm.runtime")
        return LLMSession(runtime, trt, content, stream, num_profiles)
    return TensorRTSession(trt, content, stream, num_profiles)


def plan_file(folder: Path, name: str) -> BinaryIO:
    """A plan's file in the engine folder; EngineMismatch if it is there no longer."""
    try:
        return (folder / name).open("rb")
    except OSError as error:
        raise EngineMismatch(
            f"{folder / name} cannot be read: {error.strerror or error}; build the engine again"
        ) from None


_loaded: dict[str, str] = {}
"""By TensorRT's module, whose registry is the process': the digest of the plugins in it."""


def with_plugins(folder: Path, plan: PlanFacts) -> Any:
    """The plan's TensorRT, which has its plugins: EngineMismatch if it can't have them here."""
    name, library = PLAN_BACKENDS[plan.flavour].modules[-1], folder / plan.library_file
    trt = _imported(name)
    # Once: by now another build's may stand at this path, and of names that it has the registry
    # takes no others.
    if name not in _loaded:
        if trt.get_plugin_registry().load_library(str(library)) is None:
            raise EngineMismatch(f"{plan.flavour} could not load the plugins of {library}")
        _loaded[name] = plan.library_sha256
    if _loaded[name] != plan.library_sha256:
        raise EngineMismatch(
            f"{plan.flavour} has plugins of another library than {library} in this process "
            "already: open the engine in a process of its own"
        )
    return trt


class ScoringFile:
    """An engine folder's plan of the scoring pass, which is opened when it is first wanted.

    The file is held from the start: what stands at its path by then may be another build's.
    """

    def __init__(self, folder: Path, plan: PlanFacts) -> None:
        self._folder, self._plan = folder, plan
        self._file = plan_file(folder, plan.scoring_file)
        self._num_bytes = os.fstat(self._file.fileno()).st_size

    def open(self) -> PlanSession:
        """The plan, ready to run; OutOfMemory, and nothing was tried, if it can't be held."""
        name, mib = self._plan.scoring_file, self._num_bytes >> 20
        # What torch keeps for itself, TensorRT can't have.
        torch.cuda.empty_cache()
        free, _ = torch.cuda.mem_get_info()
        if free < self._num_bytes and WEIGHT_STREAMING not in self._plan.flags:
            raise OutOfMemory(
                f"{name}, which says what a question attends to, takes {mib} MiB of the GPU's "
                f"memory, of which {free >> 20} MiB are free: take a mode without 'guided', or "
                "open the engine with a smaller pool_tokens"
            )
        self._file.seek(0)
        session = open_plan(self._folder, self._plan, self._file, num_profiles=1)
        log.info("%s is open, of %d MiB, for modes with 'guided'", name, mib)
        return session


def _imported(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        # Installed, as the choice found, and yet a library of the driver or of CUDA is not here.
        raise EngineMismatch(f"{module} can't be imported: {error}") from error


def plan_log(trt: Any) -> Any:
    """A logger that keeps TensorRT's last words of trouble in `words`, and logs them."""

    class PlanLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.words: deque[str] = deque(maxlen=3)

        def log(self, severity: Any, msg: str) -> None:
            if severity in (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR):
                self.words.append(" ".join(msg.split())[:500])
                log.error("TensorRT: %s", msg)
            elif severity == trt.ILogger.WARNING:
                log.warning("TensorRT: %s", msg)

    return PlanLog()


class TensorRTSession:
    """Prefill steps in one context; those of the other profiles as CUDA graphs.

    TensorRT-RTX captures them itself when its context is asked to; TensorRT leaves it to us.
    """

    def __init__(self, trt: Any, content: bytes, stream: Any, num_profiles: int) -> None:
        self._stream = stream
        # Kept: an engine must not outlive its runtime, nor a runtime its logger.
        self._logger = plan_log(trt)
        self._runtime = trt.Runtime(self._logger)
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            reasons = "; ".join(self._logger.words) or "it gave no reason"
            raise EngineMismatch(f"TensorRT could not open the plan: {reasons}")
        if self._engine.streamable_weights_size:
            stream_weights(self._engine)
        static = trt.ExecutionContextAllocationStrategy.STATIC
        self._prefill = ContextSteps(context_of(self._engine, static, PREFILL, stream), stream)
        self._graphs = {
            number: self._graph_steps(trt, number) for number in range(PREFILL + 1, num_profiles)
        }

    def _graph_steps(self, trt: Any, profile: int) -> ContextSteps | StepGraphs:
        if not hasattr(trt, "CudaGraphStrategy"):
            return step_graphs(trt, self._engine, profile, self._stream)
        config = self._engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return ContextSteps(context_of(self._engine, config, profile, self._stream), self._stream)

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        steps = self._graphs.get(profile, self._prefill)
        self._stream.wait_stream(torch.cuda.current_stream())
        steps.run(inputs, outputs)
        self._stream.synchronize()


def stream_weights(engine: Any) -> None:
    """Keep as many weights on the GPU as TensorRT finds room for, before a context is made."""
    budget = engine.get_weight_streaming_automatic_budget()
    engine.weight_streaming_budget_v2 = budget
    log.info(
        "weights are streamed: %d of %d bytes stay on the GPU",
        budget,
        engine.streamable_weights_size,
    )


def step_graphs(trt: Any, engine: Any, profile: int, stream: Any) -> StepGraphs:
    """The steps of one profile, each context with memory for that profile only."""
    strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
    return StepGraphs(lambda: context_of(engine, strategy, profile, stream), stream)


class LLMSession:
    """`runtime` is `tensorrt_llm.runtime`, `trt` the `tensorrt` that it is built on."""

    def __init__(
        self, runtime: Any, trt: Any, content: bytes, stream: Any, num_profiles: int
    ) -> None:
        self._session = runtime.Session.from_serialized_engine(content)
        if self._session.engine.streamable_weights_size:
            raise EngineMismatch(f"the plan streams weights, and {NO_STREAMING}")
        self._stream = stream
        self._graphs = {
            number: step_graphs(trt, self._session.engine, number, stream)
            for number in range(PREFILL + 1, num_profiles)
        }

    def run(self, profile: int, inputs: Tensors, outputs: Tensors) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        if profile in self._graphs:
            self._graphs[profile].run(inputs, outputs)
        else:
            self._run_session(inputs, outputs)
        self._stream.synchronize()

    def _run_session(self, inputs: Tensors, outputs: Tensors) -> None:
        try:
            self._session.set_shapes(dict(inputs))
        except ValueError as error:
            raise StepFailed(f"TensorRT-LLM refused a shape: {error}") from error
        stream = self._stream.cuda_stream
        if not self._session.run(addresses(inputs), addresses(outputs), stream):
            raise StepFailed("TensorRT-LLM refused to execute a step")
