"""The plan of an engine folder: what is recorded about it beforehand, and its files."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from legokv.built.folder import MODEL_FILE, SCORING_MODEL_FILE
from legokv.built.plan_facts import ANY_ARCHITECTURE, PlanFacts
from legokv.built.plan_limits import (
    PREFILL,
    PlanLimits,
    Profile,
    plan_profiles,
    scoring_profile,
    settled_limits,
)
from legokv.errors import UnsupportedModel
from legokv.kernels.build_gpu import LIBRARY_NAME, library_digest
from legokv.kernels.gpu import Launchers
from legokv.model.config import ModelConfig
from legokv.plan.backends import PLAN_BACKENDS, backend_version, gpu_architecture
from legokv.plan.process import build_plan
from legokv.plan.request import LAYERS_SUFFIX, TIMINGS_SUFFIX, PlanFiles, plan_request
from legokv.step.graph import GraphShape, ScoringShape

# What the plugins have kernels for, to be known before they are compiled.
HEAD_SIZES = (64, 80, 96, 128)
PAGE_SIZES = (16, 32, 64)


def check_sizes(model: ModelConfig, graph: GraphShape, limits: PlanLimits) -> None:
    """UnsupportedModel or InvalidRequest if no plan can be of these sizes and limits."""
    _check_kernels({"head_sizes": HEAD_SIZES, "page_sizes": PAGE_SIZES}, graph)
    settled_limits(model, graph, limits)


def engine_plan(
    backend: str,
    model: ModelConfig,
    graph: GraphShape,
    library: Path,
    limits: PlanLimits,
    flags: tuple[str, ...] = (),
) -> PlanFacts:
    """The facts of the plan that `backend` would build here.

    UnsupportedModel if the plugin library has no kernel for the model's sizes.
    """
    _check_kernels(Launchers(library).info(), graph)
    needs_gpu = PLAN_BACKENDS[backend].needs_gpu
    scoring_file, scored = PLAN_BACKENDS[backend].scoring(model.num_layers)
    return PlanFacts(
        flavour=backend,
        version=backend_version(backend),
        architecture=(gpu_architecture() if needs_gpu else None) or ANY_ARCHITECTURE,
        plan_file=PLAN_BACKENDS[backend].plan_file,
        library_file=LIBRARY_NAME,
        library_sha256=library_digest(library),
        limits=settled_limits(model, graph, limits),
        profiles=plan_profiles(model, graph, limits),
        imports=graph.imports,
        flags=flags,
        scoring_file=scoring_file,
        scoring_layers=scored,
    )


def files_beside(plan: PlanFacts) -> frozenset[str]:
    """What a build may leave beside plans: lists of their layers, what their builder timed."""
    plans = [Path(name) for name in (plan.plan_file, plan.scoring_file) if name]
    beside = [file.with_suffix(LAYERS_SUFFIX) for file in plans]
    return frozenset(file.as_posix() for file in (*beside, plans[0].with_suffix(TIMINGS_SUFFIX)))


def write_plan(
    folder: Path,
    plan: PlanFacts,
    graph: GraphShape,
    library: Path,
    before: Path,
    say: Callable[[str], None],
) -> None:
    """Build the plans of `folder`'s model.onnx and scoring.onnx there, beside the plugin library.

    What the build of the engine folder `before` timed is not timed again.
    """
    shutil.copyfile(library, folder / plan.library_file)
    timings, earlier = (
        (of / plan.plan_file).with_suffix(TIMINGS_SUFFIX)
        if PLAN_BACKENDS[plan.flavour].times
        else None
        for of in (folder, before)
    )

    def files(model: str, file: str, timings_before: Path | None) -> PlanFiles:
        say(f"Building {file} with {plan.flavour} {plan.version}")
        library_file = folder / plan.library_file
        return PlanFiles(folder / model, folder / file, library_file, timings, timings_before)

    model = files(MODEL_FILE, plan.plan_file, earlier)
    model.plan.parent.mkdir(exist_ok=True)
    _build(plan, graph, plan.profiles, model, say)
    if plan.scoring_file:
        # Of the same layers, so most of it was timed a moment ago.
        scoring = files(SCORING_MODEL_FILE, plan.scoring_file, timings)
        shape = ScoringShape(graph, plan.scored)
        _build(plan, shape, [scoring_profile(plan.profiles[PREFILL])], scoring, say)


def _build(
    plan: PlanFacts,
    graph: GraphShape | ScoringShape,
    profiles: Sequence[Profile],
    files: PlanFiles,
    say: Callable[[str], None],
) -> None:
    summary = build_plan(plan_request(plan.flavour, graph, profiles, files, plan.flags), say)
    for line in (str(summary), *summary.layers):
        say(f"  {line}")


def _check_kernels(info: Mapping[str, Sequence[int]], graph: GraphShape) -> None:
    for what, size, sizes in (
        ("head size", graph.head_size, info["head_sizes"]),
        ("page size", graph.page_size, info["page_sizes"]),
    ):
        if size not in sizes:
            raise UnsupportedModel(
                f"the plugins have no kernel for {what} {size}, only for "
                f"{', '.join(map(str, sizes))}: choose --backend torch"
            )
