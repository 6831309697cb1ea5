"""What this machine is and lacks, as JSON: the facts every published number needs beside it."""

import json
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("torch", "numpy", "pytest")
WORTH_HAVING = {
    "tensorrt_rtx_bindings": "plans are not run",
    "safetensors": "the real model is not run",
}


def facts(commit: str) -> dict[str, Any]:
    return {
        "device": device(),
        "driver": driver(),
        "python": platform.python_version(),
        "torch": torch_version(),
        "nvcc": shutil.which("nvcc"),
        "cmake": shutil.which("cmake"),
        "compute_sanitizer": program("compute-sanitizer"),
        "ncu": program("ncu"),
        "commit": commit,
        "missing": [name for name in NEEDED if find_spec(name) is None],
        "absent": [f"{name}: {so}" for name, so in WORTH_HAVING.items() if find_spec(name) is None],
    }


def device() -> dict[str, Any] | None:
    """The first CUDA device; None where torch has none."""
    if find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
    }


def torch_version() -> str | None:
    if find_spec("torch") is None:
        return None
    import torch

    return f"{torch.__version__}, CUDA {torch.version.cuda}"


def program(name: str) -> str | None:
    """On the path, or in the toolkit's usual folder."""
    usual = Path("/usr/local/cuda/bin", name)
    return shutil.which(name) or (str(usual) if usual.is_file() else None)


def driver() -> str | None:
    """The driver's version as nvidia-smi says it; None where there is no nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    finished = subprocess.run(query, capture_output=True, text=True, check=False)
    return finished.stdout.strip() or None


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(facts(sys.argv[2])), encoding="utf-8")
