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
    """`profiles` has, for each optimisation profile, the range of every input."""

    backend: str
    model_file: str
    plan_file: str
    plugin_library: str
    dtype: str
    profiles: tuple[tuple[InputRange, ...], ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), allow_nan=False)


@dataclass(frozen=True)
class PlanSummary:
    """What the built network has: its layers, our plugins among them by name, and the file."""

    backend: str
    version: str
    num_layers: int
    plugins: dict[str, int] = field(default_factory=dict)
    num_profiles: int = 0
    plan_bytes: int = 0

    def __str__(self) -> str:
        plugins = ", ".join(f"{count} {name}" for name, count in sorted(self.plugins.items()))
        return (
            f"{self.backend} {self.version}: {self.num_layers} layers, of them {plugins}; "
            f"{self.num_profiles} profiles; {self.plan_bytes / 2**20:.1f} MiB"
        )


@dataclass(frozen=True)
class PlanFiles:
    """Where the build finds the model and the plugins, and where it puts the plan."""

    model: Path
    plan: Path
    plugin_library: Path


def plan_request(
    backend: str,
    graph: GraphShape | ScoringShape,
    profiles: Sequence[Profile],
    files: PlanFiles,
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
    return PlanRequest(**(data | {"profiles": profiles}))
