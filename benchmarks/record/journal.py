"""Raw measurements as lines of a file, so that an interrupted run goes on where it stopped."""

import json
from pathlib import Path
from typing import Any

from benchmarks.record.about import RAW, commit, measured_since, uncommitted


class Journal:
    """What one benchmark has measured so far of one state of the code with one set of settings.

    Every entry has a key and is on disk when `add` returns. A journal of other code or of other
    settings is begun anew: numbers of different code never meet in one table.
    """

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path = path
        self._entries: dict[str, Any] = {}
        header, entries = _read(path)
        if header == settings:
            self._entries = entries
            self._write_all(settings)
            return
        self._write_all(settings)

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: str) -> Any:
        return self._entries.get(key)

    def entries(self) -> dict[str, Any]:
        return dict(self._entries)

    def add(self, key: str, value: Any) -> None:
        """Keep `value`, in the file too."""
        self._entries[key] = value
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([key, value]) + "\n")

    def _write_all(self, settings: dict[str, Any]) -> None:
        # Rewritten, so that a line torn by the interruption does not stay in the middle.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(settings), *(json.dumps(item) for item in self._entries.items())]
        self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def open_journal(name: str, settings: dict[str, Any], folder: Path = RAW) -> Journal:
    """The journal `name` with `settings`, of this commit or one whose measured code is the same.

    Uncommitted code has a journal as long as it stays as it is.
    """
    path = folder / f"{name}.jsonl"
    header, _ = _read(path)
    state = {"commit": commit(), "uncommitted": uncommitted()}
    clean = header is not None and header.get("uncommitted") == state["uncommitted"] == ""
    if clean and measured_since(header["commit"]) is False:
        state["commit"] = header["commit"]
    return Journal(path, {**state, **settings})


def _read(path: Path) -> tuple[dict[str, Any] | None, dict[str, Any]]:
    if not path.is_file():
        return None, {}
    header, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    entries: dict[str, Any] = {}
    for line in lines:
        parsed = _parsed(line)
        if parsed is not None:
            entries[parsed[0]] = parsed[1]
    return _parsed(header), entries


def _parsed(line: str) -> Any:
    """The line's value; None for one that was cut off while it was written."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        return None
