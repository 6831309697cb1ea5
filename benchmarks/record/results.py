"""Result files: benchmarks/results/NAME.json, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

from benchmarks.record.about import RESULTS

Row = dict[str, Any]


def write_results(
    name: str, about: dict[str, Any], rows: list[Row], folder: Path = RESULTS
) -> Path:
    """Write NAME.json under `folder`; where it lies."""
    folder.mkdir(parents=True, exist_ok=True)
    path, whole = folder / f"{name}.json", folder / f".{name}.json"
    whole.write_text(json.dumps({"about": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    whole.rename(path)
    return path


def read_results(name: str, folder: Path = RESULTS) -> dict[str, Any] | None:
    """The file's `about` and `rows`; None if it was not measured."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    return dict(json.loads(path.read_text(encoding="utf-8")))
