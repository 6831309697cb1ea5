"""Prints what an installation needs, a requirement a line, as pyproject.toml states it.

    python build/requirements.py client server dev     # the package's own needs and these extras'
    python build/requirements.py all                   # every extra's

Reads the file alone, so that a fresh Python without any package can run it.
"""

import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What installs and builds, pinned and hashed like the rest.
TOOLS = ("pip", "editables")


def requirements(*extras: str) -> list[str]:
    """Of the package, the named extras (or `all`) and its build system; KeyError if unknown."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    optional = project["optional-dependencies"]
    names = list(optional) if extras == ("all",) else extras
    lines = [*project["dependencies"], *(line for name in names for line in optional[name])]
    return sorted({*lines, *settings["build-system"]["requires"], *TOOLS})


if __name__ == "__main__":
    print("\n".join(requirements(*sys.argv[1:])))
