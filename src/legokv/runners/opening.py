"""Which runner an engine folder gets on this machine: the choice, said with its reason."""

import logging
from dataclasses import asdict, replace
from pathlib import Path

import torch

from legokv.built.folder import EngineFacts, build_command
from legokv.built.plan_facts import PlanFacts, PlanRuntime, check_plan
from legokv.built.plan_limits import PREFILL, scoring_profile
from legokv.built.settings import EngineSettings, RunnerName
from legokv.checkpoint.weights import load_kept_weights
from legokv.errors import EngineMismatch, InvalidRequest
from legokv.kernels.build_gpu import LIBRARY_NAME, SOURCE, library_digest
from legokv.kernels.gpu import Launchers
from legokv.model.dtypes import Dtypes
from legokv.ops.kv_import import import_stored
from legokv.plan.backends import (
    PLAN_BACKENDS,
    backend_version,
    gpu_architecture,
    this_machine,
    why_no_gpu,
)
from legokv.runners.attention_forms import (
    CPU,
    AttentionForm,
    KernelForm,
    NativeForm,
    attention_form,
    importing,
    set_threads,
)
from legokv.runners.device_guard import DeviceGuard
from legokv.runners.eager import EagerRunner
from legokv.runners.page_store import Import, PageStore, import_stream
from legokv.runners.plan.runner import ScoringPlan, TensorRTRunner
from legokv.runners.plan.sessions import ScoringFile, open_plan, plan_file
from legokv.runners.protocol import Runner
from legokv.step.graph import GraphShape, ScoringShape, graph_shape

BUILT_LIBRARY = SOURCE.parent / "out" / "plugins" / LIBRARY_NAME

log = logging.getLogger(__name__)


def open_runner(folder: Path, facts: EngineFacts, settings: EngineSettings) -> Runner:
    """The runner over an engine folder's weights or plan.

    "torch" runs on the CPU, "cuda" with torch and the plugins' kernels on a GPU, "plan" the
    folder's plan. "auto" is the plan where there is one that opens and a GPU, else cuda where there
    is a GPU and the compiled plugins, else torch. EngineMismatch if the one asked for can't run
    here, or there is no GPU of the number that is set.
    """
    chosen, reason = _choice(folder, facts, settings.runner)
    if chosen == "plan":
        try:
            runner = _plan_runner(folder, facts, settings)
        except EngineMismatch as error:
            if settings.runner != "auto":
                raise
            log.warning("the plan does not open here: %s", error)
            chosen, reason = _choice(folder, replace(facts, plan=None), "auto")
        else:
            log.info("runner: %s, %s", chosen, reason)
            return runner
    log.info("runner: %s, %s", chosen, reason)
    dtypes = Dtypes.same(settings.dtype_or(facts.dtype))
    form, device = _eager_attention(folder, facts, settings, chosen)
    runner = EagerRunner(
        facts.model,
        load_kept_weights(folder, facts.model, getattr(torch, dtypes.weights), facts.weights),
        form,
        device,
        num_pages=settings.num_pages(facts.page_size),
        page_size=facts.page_size,
    )
    return DeviceGuard(runner) if device.type == "cuda" else runner


def check_machine(folder: Path, plan: PlanFacts, gpu: int = 0) -> None:
    """EngineMismatch, naming both sides, unless this machine's GPU can run the folder's plan."""
    if plan.flavour not in this_machine().installed:
        raise EngineMismatch(
            f"{plan.plan_file} was built by {plan.flavour} {plan.version}, which is not installed "
            f"here: {PLAN_BACKENDS[plan.flavour].installed_by}"
        )
    here = PlanRuntime(
        plan.flavour,
        backend_version(plan.flavour),
        gpu_architecture(gpu) or "no GPU",
        _digest(folder / plan.library_file),
    )
    check_plan(plan, here)
    if gpu_architecture(gpu) is None:
        raise EngineMismatch(
            f"{plan.plan_file} runs on an NVIDIA GPU, torch sees none here: choose runner 'torch'"
        )


def _digest(library: Path) -> str:
    try:
        return library_digest(library)
    except OSError as error:
        raise EngineMismatch(
            f"{library} cannot be read: {error.strerror or error}; build the engine again"
        ) from None


def _choice(folder: Path, facts: EngineFacts, requested: RunnerName) -> tuple[RunnerName, str]:
    if requested != "auto":
        return requested, "as asked"
    architecture = gpu_architecture()
    if architecture is None:
        return "torch", f"since {why_no_gpu()}"
    if facts.plan is not None:
        return "plan", f"the engine's, on a GPU of {architecture}"
    if _library(folder) is None:
        return "torch", "since the plugins for the GPU are not compiled: build/build_plugins.py"
    return "cuda", f"since the engine has no plan for here and the GPU is {architecture}"


def _gpu(settings: EngineSettings) -> torch.device:
    """EngineMismatch if there is no GPU of that number."""
    if settings.gpu >= torch.cuda.device_count():
        raise EngineMismatch(
            f"gpu is {settings.gpu}, and torch sees {torch.cuda.device_count()} from number 0 on"
        )
    return torch.device("cuda", settings.gpu)


def _eager_attention(
    folder: Path, facts: EngineFacts, settings: EngineSettings, chosen: str
) -> tuple[AttentionForm, torch.device]:
    """What "torch" and "cuda" differ in: the form of attention and where it runs."""
    if chosen == "cuda":
        launchers = _launchers(folder)
        device = _gpu(settings)
        return KernelForm(launchers, facts.model, device), device
    kv_dtype = getattr(torch, Dtypes.same(settings.dtype_or(facts.dtype)).kv)
    form = attention_form(settings.attention, facts.model, kv_dtype)
    if isinstance(form, NativeForm) and not settings.num_threads:
        set_threads(form, kv_dtype)
    return form, CPU


def _plan_runner(folder: Path, facts: EngineFacts, settings: EngineSettings) -> Runner:
    plan = facts.plan
    if plan is None:
        raise EngineMismatch(
            f"{folder} has no plan, it was built for {facts.backend}: build it with a TensorRT "
            "--backend, or choose runner 'torch'"
        )
    _check_settings(plan, facts, settings)
    check_machine(folder, plan, settings.gpu)
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size, plan.import_by)
    num_pages = settings.num_pages(facts.page_size)
    device = _gpu(settings)
    with torch.cuda.device(device):
        # By nodes, pages arrive with a step: there is nothing to be beside.
        beside = import_stream(device) if plan.import_by == "stream" else None
        # First of all: streamed weights get what the pool leaves.
        store = PageStore(graph, num_pages, device, _plan_import(folder, plan), beside=beside)
        with plan_file(folder, plan.plan_file) as file:
            session = open_plan(folder, plan, file, len(plan.profiles))
        scoring = _scoring_plan(folder, facts, plan, graph)
        return DeviceGuard(TensorRTRunner(session, plan, graph, store, scoring))


def _scoring_plan(
    folder: Path, facts: EngineFacts, plan: PlanFacts, graph: GraphShape
) -> ScoringPlan | str:
    """The folder's plan of the scoring pass, or to end a sentence why there is none."""
    others = "or open it with runner 'cuda', or 'torch' on a CPU"
    flavour = plan.flavour
    if not PLAN_BACKENDS[flavour].scoring_file:
        named = ", ".join(name for name, each in PLAN_BACKENDS.items() if each.scoring_file)
        return f"which no plan of {flavour} says: build it with --backend {named}, {others}"
    if not plan.scoring_file:
        return (
            "which this engine's plan, built by older code, does not say: build it again with "
            f"{build_command(folder, asdict(facts))}, {others}"
        )
    return ScoringPlan(
        ScoringFile(folder, plan).open,
        ScoringShape(graph, plan.scored),
        scoring_profile(plan.profiles[PREFILL]),
        facts.model.num_heads,
    )


def _plan_import(folder: Path, plan: PlanFacts) -> Import:
    """By the plan's library where its graph has no nodes for it; plans that have them may be of
    older code, whose library takes other arguments.
    """
    if plan.import_by == "plugin":
        return import_stored
    return importing(Launchers(folder / plan.library_file, ("LegokvKvImport",)))


def _check_settings(plan: PlanFacts, facts: EngineFacts, settings: EngineSettings) -> None:
    if settings.dtype_or(facts.dtype) != facts.dtype:
        raise InvalidRequest(f"the plan is {facts.dtype}, dtype {settings.dtype} was asked for")
    num_pages = settings.num_pages(facts.page_size)
    for what, asked, most in (
        ("tokens in a step", settings.max_step_tokens, plan.limits.max_step_tokens),
        ("pages in the pool", num_pages, plan.profiles[0].ranges["N"].most),
    ):
        if asked > most:
            raise InvalidRequest(
                f"the plan holds {most} {what}, {asked} were asked for: lower max_step_tokens or "
                "pool_tokens, or build the engine with more"
            )


def _kernels(folder: Path) -> Path:
    """The library that runner "cuda" calls; EngineMismatch with the first thing it lacks here."""
    if gpu_architecture() is None:
        lack = (
            f"torch {torch.__version__} here is built without CUDA: `make cuda-torch` installs it"
            if torch.version.cuda is None
            else f"torch {torch.__version__} sees none here: check the driver (nvidia-smi)"
        )
        raise EngineMismatch(f"runner 'cuda' needs an NVIDIA GPU, {lack}, or choose runner 'torch'")
    library = _library(folder)
    if library is None:
        raise EngineMismatch(
            f"runner 'cuda' needs the compiled plugins, neither {folder / LIBRARY_NAME} nor "
            f"{BUILT_LIBRARY} is there: run build/build_plugins.py"
        )
    return library


def _launchers(folder: Path) -> Launchers:
    """Those of the library that runner "cuda" calls; an older engine's own takes other arguments,
    and then this checkout's are called. EngineMismatch if neither can be.
    """
    library = _kernels(folder)
    try:
        return Launchers(library)
    except EngineMismatch as error:
        if library == BUILT_LIBRARY or not BUILT_LIBRARY.is_file():
            raise
        log.warning("%s is called in its place: %s", BUILT_LIBRARY, error)
    return Launchers(BUILT_LIBRARY)


def _library(folder: Path) -> Path | None:
    """The compiled plugins: the engine's own, else those of this checkout."""
    libraries = (path for path in (folder / LIBRARY_NAME, BUILT_LIBRARY) if path.is_file())
    return next(libraries, None)
