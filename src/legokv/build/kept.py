"""Whether an engine folder already is what is asked for, and in words what a build replaces."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from legokv.built.folder import EngineFacts, read_engine_folder
from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import PlanLimits, settled_limits
from legokv.built.seal import check_content
from legokv.errors import EngineMismatch, UnsupportedModel
from legokv.plan.backends import PLAN_BACKENDS, gpu_architecture
from legokv.runners.opening import check_machine
from legokv.step.graph import graph_shape
from legokv.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class AskedPlan:
    """What a build chooses of a plan besides its backend."""

    limits: PlanLimits
    imports: str
    flags: tuple[str, ...]


def is_up_to_date(
    folder: Path, facts: EngineFacts, names: Collection[str], *, keep_failed: bool
) -> bool:
    """Whether `folder` is the engine of `facts` with the products of these `names`, checked."""
    before = _found(folder)
    return before is not None and _is_sound(before, names, keep_failed) and _bare(before) == facts


def kept_plan(
    folder: Path,
    facts: EngineFacts,
    names: Collection[str],
    asked: AskedPlan,
    *,
    keep_failed: bool,
) -> str | None:
    """The plan of `folder`, in words, if the folder is the engine of `facts` but for who built it.

    None if there is no plan, or facts' own backend built it; if it was built for others than are
    `asked` (where that backend builds plans, too), or if there is a GPU that can't run it.
    """
    before = _found(folder)
    if before is None or before.plan is None or not _is_sound(before, names, keep_failed):
        return None
    if before.plan.flavour == facts.backend:
        return None  # what `is_up_to_date` judges, by the plugins of the present sources too
    if replace(_bare(before), plan=None, backend=facts.backend) != facts:
        return None
    if not (_is_as(asked, before.plan, facts) and _may_run(folder, before.plan)):
        return None
    return f"{folder} has {_plan(before.plan)}"


def has_plan_of(folder: Path, weights: str) -> bool:
    """Whether `folder` is an engine with a plan whose weights are in that form."""
    before = _found(folder)
    return before is not None and before.plan is not None and before.weights == weights


def replacement(folder: Path, facts: EngineFacts) -> str:
    """What changes in `folder` when the engine of `facts` takes its place, in words."""
    try:
        before, after = _spoken(read_engine_folder(folder)), _spoken(facts)
    except EngineMismatch as error:
        return str(error)
    changed = (what for what in after if before[what] != after[what])
    words = "; ".join(f"{what} {before[what]} becomes {after[what]}" for what in changed)
    return words or "the same is built again"


def _spoken(facts: EngineFacts) -> dict[str, str]:
    plan = facts.plan
    return {
        "backend": facts.backend,
        "type": facts.dtype,
        "weights": facts.weights,
        "page size": str(facts.page_size),
        "name": facts.name,
        "fingerprint": facts.fingerprint[:12],
        "legokv": facts.legokv_version,
        "plan": "none" if plan is None else _plan(plan),
    }


def _plan(plan: PlanFacts) -> str:
    limits = plan.limits
    return (
        f"{plan.plan_file} ({plan.flavour} {plan.version}, architecture {plan.architecture}, at "
        f"most {limits.max_step_tokens} tokens, {limits.max_sequences} sequences and "
        f"{limits.max_import_pages} arriving pages a step, imported by {plan.imports}, "
        f"{''.join(f'with {flag}, ' for flag in plan.flags)}"
        f"{'with' if plan.scoring_file else 'without'} a plan of the scoring pass, plugins "
        f"{plan.library_sha256[:12]})"
    )


def _found(folder: Path) -> EngineFacts | None:
    try:
        facts = read_engine_folder(folder)
        check_content(folder, facts, Tokenizer.open(folder).fingerprint)
    except (EngineMismatch, UnsupportedModel):
        return None
    return facts


def _is_sound(facts: EngineFacts, names: Collection[str], keep_failed: bool) -> bool:
    has_all = {file.name for file in facts.produced}.issuperset(names)
    return has_all and facts.gate is not None and (facts.gate.passed or keep_failed)


def _bare(facts: EngineFacts) -> EngineFacts:
    return replace(facts, produced=(), gate=None)


def _is_as(asked: AskedPlan, plan: PlanFacts, facts: EngineFacts) -> bool:
    if facts.backend not in PLAN_BACKENDS:
        return True
    scoring = PLAN_BACKENDS[plan.flavour].scoring(facts.model.num_layers)
    if (plan.scoring_file, plan.scoring_layers) != scoring:
        return False
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size)
    limits = settled_limits(facts.model, graph, asked.limits)
    return (plan.limits, plan.imports, plan.flags) == (limits, asked.imports, asked.flags)


def _may_run(folder: Path, plan: PlanFacts) -> bool:
    if gpu_architecture() is None:
        return True
    try:
        check_machine(folder, plan)
    except EngineMismatch:
        return False
    return True
