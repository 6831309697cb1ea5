"""The peers by name: which script, in which environment, and whether it is installed."""

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.record.about import ROOT
from benchmarks.record.names import UnknownName

PEERS = ROOT / "out" / "peers"
SCRIPTS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Engine:
    """One peer: its script, the Python that runs it, the module that must be there."""

    name: str
    python: Path
    module: str
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def script(self) -> Path:
        return SCRIPTS / f"{self.name}_engine.py"

    def missing(self) -> str | None:
        """Why it cannot run, with what to do; None if it can."""
        hint = f"run `make peers` (python -m benchmarks.peers.install {self.name})"
        if not self.python.is_file():
            return f"{self.name} is not installed: {hint}"
        # Found, not imported: importing one of these takes seconds.
        probe = f"import importlib.util as u, sys; sys.exit(u.find_spec('{self.module}') is None)"
        found = subprocess.run([str(self.python), "-c", probe], check=False)
        return None if found.returncode == 0 else f"{self.name} lacks {self.module}: {hint}"


def engines(num_threads: int) -> dict[str, Engine]:
    cores = sorted(os.sched_getaffinity(0))[:num_threads]
    vllm = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        # GiB. With 2, 32 askers in orders of their own would wait for each other's pages.
        "VLLM_CPU_KVCACHE_SPACE": "4",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        "HF_HUB_OFFLINE": "1",
    }
    here = Path(sys.executable)
    made = (
        Engine("legokv", here, "legokv"),
        Engine("vllm", PEERS / "vllm" / "bin" / "python", "vllm", vllm),
        Engine("llama_cpp", PEERS / "llama_cpp" / "bin" / "python", "xllamacpp"),
        Engine("transformers", here, "transformers"),
    )
    return {each.name: each for each in made}


def engine(name: str, num_threads: int) -> Engine:
    known = engines(num_threads)
    if name not in known:
        raise UnknownName(f"unknown peer '{name}'; known are {', '.join(known)}")
    return known[name]
