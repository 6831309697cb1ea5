"""The backends an engine can be built for, which of them are installed, and the choice."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from legokv.errors import BackendMissing
from legokv.model.config import scoring_layers


@dataclass(frozen=True)
class PlanBackend:
    """A TensorRT: the modules it is made of (the one with its version last), how to get them.

    scoring_file: the plan of the scoring pass beside it; "": none is built.
    takes_qdq: whether its builder is known to take Q/DQ nodes.
    gpus: how the architectures begin that its support matrix lists; empty: all that we compile for.
    times: whether its builder measures, and can be given what an earlier build measured.
    """

    name: str
    modules: tuple[str, ...]
    plan_file: str
    needs_gpu: bool
    installed_by: str
    scoring_file: str = ""
    takes_qdq: bool = True
    gpus: tuple[str, ...] = ()
    times: bool = False

    def lists(self, gpu: str) -> bool:
        """Whether it says that it runs on a GPU of this architecture ("sm_90")."""
        return not self.gpus or gpu.startswith(self.gpus)

    def scoring(self, num_layers: int) -> tuple[str, tuple[int, ...]]:
        """The scoring plan's file and the layers it weighs keys in; "" and none where none is."""
        layers = tuple(scoring_layers(num_layers)) if self.scoring_file else ()
        return self.scoring_file, layers


PLAN_BACKENDS = {
    backend.name: backend
    for backend in (
        PlanBackend(
            "tensorrt-llm",
            ("tensorrt_llm", "tensorrt"),
            plan_file="tensorrt-llm/rank0.engine",
            needs_gpu=True,
            installed_by="pip install 'tensorrt-llm==1.2.*', from the vendor's package index",
            takes_qdq=False,
        ),
        PlanBackend(
            "tensorrt",
            ("tensorrt",),
            plan_file="tensorrt.plan",
            needs_gpu=True,
            installed_by="pip install tensorrt, from the vendor's package index",
            scoring_file="tensorrt.scoring.plan",
            times=True,
        ),
        PlanBackend(
            "tensorrt-rtx",
            ("tensorrt_rtx_bindings",),
            plan_file="tensorrt-rtx.plan",
            needs_gpu=False,
            installed_by="pip install 'legokv[tensorrt-rtx]'",
            scoring_file="tensorrt-rtx.scoring.plan",
            # Its matrices up to 1.4: compute capability 7.5, 8.6, 8.9 and 12.x. No A100, no H100.
            gpus=("sm_75", "sm_86", "sm_89", "sm_12"),
        ),
    )
}
BACKENDS = ("auto", "torch", *PLAN_BACKENDS)


@dataclass(frozen=True)
class Machine:
    """What the choice depends on: the GPU's architecture ("sm_90"; None without one), the
    backends that are installed."""

    gpu: str | None
    installed: frozenset[str]


def this_machine() -> Machine:
    """What is here; nothing is imported but torch."""
    installed = (name for name, b in PLAN_BACKENDS.items() if all(map(find_spec, b.modules)))
    return Machine(gpu_architecture(), frozenset(installed))


def gpu_architecture(number: int = 0) -> str | None:
    """That of the CUDA device of a number, as "sm_90"; None where torch sees no such device."""
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        return None
    major, minor = torch.cuda.get_device_capability(number)
    return f"sm_{major}{minor}"


NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def why_no_gpu() -> str:
    """Why there is no GPU to use, with the next step where a driver is here and torch is not."""
    if torch.version.cuda is None and NVIDIA_DRIVER.exists():
        return (
            f"torch {torch.__version__} is a CPU build, and there is an NVIDIA driver: "
            "`make cuda-torch` installs the one with CUDA"
        )
    return "torch sees no NVIDIA GPU"


def backend_version(name: str) -> str:
    """The version of the TensorRT that `name` builds with, which its plans depend on."""
    return str(importlib.import_module(PLAN_BACKENDS[name].modules[-1]).__version__)


def choose_backend(requested: str, machine: Machine, say: Callable[[str], None]) -> str:
    """`requested` if this machine can build it, or auto's choice, which is said with its reason.

    auto takes the first installed of TensorRT-LLM, TensorRT and TensorRT-RTX that lists the GPU
    which is here, else torch. BackendMissing, with the next step, for what can't be built here.
    """
    if requested == "auto":
        chosen, reason = _automatic(machine)
        say(f"Backend auto: {chosen}, since {reason}")
        return chosen
    if requested not in BACKENDS:
        raise BackendMissing(f"there is no backend '{requested}'; there are {', '.join(BACKENDS)}")
    if requested in PLAN_BACKENDS:
        _check(PLAN_BACKENDS[requested], machine)
    return requested


def _automatic(machine: Machine) -> tuple[str, str]:
    installed = [name for name in PLAN_BACKENDS if name in machine.installed]
    if machine.gpu is None:
        without = [name for name in installed if not PLAN_BACKENDS[name].needs_gpu]
        more = "".join(f"; --backend {name} builds one all the same" for name in without)
        return "torch", f"{why_no_gpu()}, so no plan could run{more}"
    if not installed:
        return "torch", f"none of {', '.join(PLAN_BACKENDS)} is installed"
    for name in installed:
        if PLAN_BACKENDS[name].lists(machine.gpu):
            return name, f"it is installed and the GPU is {machine.gpu}"
    return "torch", (
        f"the GPU is {machine.gpu}, which {', '.join(installed)} does not list as supported; for "
        f"this GPU: {PLAN_BACKENDS['tensorrt'].installed_by}"
    )


def _check(backend: PlanBackend, machine: Machine) -> None:
    if backend.name not in machine.installed:
        raise BackendMissing(
            f"{backend.name} is not installed: {backend.installed_by}, or choose another --backend"
        )
    if backend.needs_gpu and machine.gpu is None:
        raise BackendMissing(
            f"{backend.name} builds plans on the GPU they are for, and torch sees none here: build "
            "there, or choose --backend tensorrt-rtx or torch"
        )
