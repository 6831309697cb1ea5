"""Writes constraints.txt anew: exact versions and hashes of all that an installation may get.

    out/venv/bin/python build/lock.py [--upgrade]

Versions stay as they are unless `--upgrade` is given. The hashes are those that the package index
states for each file of a version, for every platform.
"""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path

from requirements import ROOT, requirements

LOCK = ROOT / "constraints.txt"
HEADER = """\
# Exact versions and hashes of all that an installation gets. Made by build/lock.py.
# SHA-256 of the lines below: {digest}
"""
# PyTorch's own CPU builds have the version of the index's file and other bytes.
MORE_HASHES = {
    "torch==2.13.0": ("6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--upgrade", action="store_true", help="take the newest versions")
    upgrade = parser.parse_args().upgrade
    with tempfile.TemporaryDirectory() as folder:
        roots = Path(folder, "requirements.in")
        roots.write_text("\n".join(requirements("all")) + "\n")
        lines = _compiled(roots, None if upgrade else LOCK)
    lock = _with_more_hashes(lines)
    digest = hashlib.sha256(lock.encode()).hexdigest()
    LOCK.write_text(HEADER.format(digest=digest) + lock)


def _compiled(roots: Path, versions: Path | None) -> str:
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--generate-hashes"]
    command += ["--no-header", "--no-annotate", "--python-version", "3.11", str(roots)]
    command += [] if versions is None else ["--constraint", str(versions)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def _with_more_hashes(lock: str) -> str:
    for pin, hashes in MORE_HASHES.items():
        first = f"{pin} \\\n"
        more = "".join(f"    --hash=sha256:{value} \\\n" for value in hashes)
        lock = lock.replace(first, first + more)
    return lock


if __name__ == "__main__":
    main()
