"""What engine.json records about a plan, and whether a machine may run it. No torch here."""

from dataclasses import dataclass

from legokv.built.plan_limits import PlanLimits, Profile
from legokv.errors import EngineMismatch
from legokv.step.graph import IMPORTS, ImportBy

WEIGHT_STREAMING = "weight_streaming"
PLAN_FLAGS = (WEIGHT_STREAMING, "refit")
"""What a plan's builder can be asked to do besides, as TensorRT's builder flags are called."""

NO_STREAMING = (
    "nothing tells a session of tensorrt-llm how many of them stay on the GPU: build without "
    "--weight-streaming, or with another --backend"
)

# TensorRT-RTX finishes compiling on the GPU it meets; its plans are bound to none.
ANY_ARCHITECTURE = "any"


@dataclass(frozen=True)
class PlanFacts:
    """A plan and what must be the same where it runs.

    flavour: the backend that built it; version: of its TensorRT; architecture: "sm_90", or "any".
    plan_file and library_file lie in the engine folder; library_sha256 is the plugin library's.
    imports: what puts arriving pages into the pools; older engines, which don't say, have nodes.
    flags: of `PLAN_FLAGS`, what its builder was asked to do besides.
    scoring_file: the plan of the scoring pass; none in older engines, nor where none is built.
    scoring_layers: those in which it weighs keys, one after another.
    """

    flavour: str
    version: str
    architecture: str
    plan_file: str
    library_file: str
    library_sha256: str
    limits: PlanLimits
    profiles: tuple[Profile, ...]
    imports: str = "plugin"
    flags: tuple[str, ...] = ()
    scoring_file: str = ""
    scoring_layers: tuple[int, ...] = ()

    @property
    def scored(self) -> range:
        """`scoring_layers`; EngineMismatch if they are no layers one after another."""
        first, last = min(self.scoring_layers, default=0), max(self.scoring_layers, default=-1)
        layers = range(first, last + 1)
        if not layers or tuple(layers) != self.scoring_layers or first < 0:
            raise EngineMismatch(
                f"{self.scoring_file} weighs keys in layers {str(self.scoring_layers)[:80]}, which "
                "do not follow one another: build the engine again"
            )
        return layers

    @property
    def import_by(self) -> ImportBy:
        """`imports`; EngineMismatch if it is nothing that a plan can do."""
        for each in IMPORTS:
            if each == self.imports:
                return each
        raise EngineMismatch(
            f"the plan imports pages by {self.imports[:80]!r}, which is none of "
            f"{', '.join(IMPORTS)}: build the engine again"
        )


@dataclass(frozen=True)
class PlanRuntime:
    """What is here to run a plan: the same facts of this machine, as `PlanFacts` has them."""

    flavour: str
    version: str
    architecture: str
    library_sha256: str


def check_plan(plan: PlanFacts, here: PlanRuntime) -> None:
    """EngineMismatch, naming both sides, at the first fact in which plan and machine differ."""
    for what, recorded, present in (
        ("flavour", plan.flavour, here.flavour),
        (f"{plan.flavour} version", plan.version, here.version),
        ("GPU architecture", plan.architecture, here.architecture),
        ("plugin library's SHA-256", plan.library_sha256, here.library_sha256),
    ):
        if present != recorded and recorded != ANY_ARCHITECTURE:
            raise EngineMismatch(
                f"{plan.plan_file} was built for {what} {recorded}, here it is {present}: "
                "build the engine again on this machine"
            )
