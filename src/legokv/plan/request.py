"""What a plan is built from, and what came of it: plain data for the build process."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from legokv.built.plan_limits import Profile
from legokv.step.graph import GraphShape, ScoringShape

Shape = tuple[int, ...]


@dataclass(frozen=True)
class InputRange:
    """The smallest, usual and largest shape of one input under one profile."""

    name: str
    least: Shape
    usual: Shape
    most: Shape


@dataclass(frozen=True)
class PlanRequest:
    """`profiles` has, for each optimisation profile, the range of every input.

    flags: of `PLAN_FLAGS`, what the builder is asked to do besides.
    layers_file: where the list of the plan's layers goes.
    timing_file, timing_before: where TensorRT's timings go, and where an earlier build's are.
    """

    backend: str
    model_file: str
    plan_file: str
    plugin_library: str
    dtype: str
    profiles: tuple[tuple[InputRange, ...], ...]
    profile_names: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    layers_file: str = ""
    timing_file: str = ""
    timing_before: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True)
class PlanSummary:
    """What the built network has: its layers, our plugins among them by name, and the file.

    `layers` says in short what TensorRT made of them, a line for each profile.
    """

    backend: str
    version: str
    num_layers: int
    plugins: dict[str, int] = field(default_factory=dict)
    num_profiles: int = 0
    plan_bytes: int = 0
    layers: tuple[str, ...] = ()

    def __str__(self) -> str:
        plugins = ", ".join(f"{count} {name}" for name, count in sorted(self.plugins.items()))
        profiles = f"{self.num_profiles} profile{'s' * (self.num_profiles != 1)}"
        return (
            f"{self.backend} {self.version}: {self.num_layers} layers, of them {plugins}; "
            f"{profiles}; {self.plan_bytes / 2**20:.1f} MiB"
        )


@dataclass(frozen=True)
class PlanFiles:
    """Where the build finds the model and the plugins, and where it puts the plan.

    timings: where it leaves what it timed; None if it times nothing.
    timings_before: where an earlier build of this backend left it.
    """

    model: Path
    plan: Path
    plugin_library: Path
    timings: Path | None = None
    timings_before: Path | None = None

    @property
    def layers(self) -> Path:
        """The list of the plan's layers, beside it."""
        return self.plan.with_suffix(LAYERS_SUFFIX)


LAYERS_SUFFIX, TIMINGS_SUFFIX = ".layers.json", ".timings"


def plan_request(
    backend: str,
    graph: GraphShape | ScoringShape,
    profiles: Sequence[Profile],
    files: PlanFiles,
    flags: Sequence[str] = (),
) -> PlanRequest:
    """The request to build `files.plan` for `profiles` of the graph."""
    return PlanRequest(
        backend=backend,
        model_file=str(files.model),
        plan_file=str(files.plan),
        plugin_library=str(files.plugin_library),
        dtype=graph.dtypes.compute,
        profiles=tuple(
            tuple(InputRange(b.name, *profile.shapes(b)) for b in graph.inputs)
            for profile in profiles
        ),
        profile_names=tuple(profile.name for profile in profiles),
        flags=tuple(flags),
        layers_file=str(files.layers),
        timing_file=str(files.timings or ""),
        timing_before=str(files.timings_before or ""),
    )


def request_from_json(text: str) -> PlanRequest:
    """What `PlanRequest.to_json` wrote."""
    data: dict[str, Any] = json.loads(text)
    profiles = tuple(
        tuple(
            InputRange(r["name"], tuple(r["least"]), tuple(r["usual"]), tuple(r["most"]))
            for r in profile
        )
        for profile in data["profiles"]
    )
    names = {name: tuple(data[name]) for name in ("profile_names", "flags")}
    return PlanRequest(**(data | names | {"profiles": profiles}))
