"""Raw rows of the reuse benchmarks: a journal for each state of the code that makes them.

Rows of other code stay in their own file, out of every table. Each row says at which commit it was
measured: a commit that leaves this folder as it is does not cost the rows.
"""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.record.about import RAW
from benchmarks.record.journal import Journal

_NOT_MEASURING = ("__main__.py", "entries.py", "tables.py", "bootstrap.py")


def code_digest(folder: Path = Path(__file__).parent) -> str:
    """Over the files here that methods, cases and numbers come from."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.py")):
        if path.name not in _NOT_MEASURING:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def open_entries(kind: str, settings: dict[str, Any]) -> Journal:
    """The journal of `kind` ("fidelity", "quality") for the present code and `settings`."""
    digest = hashlib.sha256(repr(sorted(settings.items())).encode()).hexdigest()[:6]
    code = code_digest()
    path = RAW / f"reuse-{kind}-{code}-{digest}.jsonl"
    for other in sorted(RAW.glob(f"reuse-{kind}-*.jsonl")):
        if other != path:
            print(f"{other.name}: of other code or settings, not used")
    return Journal(path, {"code": code, **settings})


def key_of(case: str, method: str) -> str:
    return f"{case}//{method}"


def missing(journal: Journal, case: str, methods: Iterable[str]) -> list[str]:
    """Those of `methods` that have no row for `case`, in order."""
    return [method for method in methods if key_of(case, method) not in journal]


def by_method(journal: Journal, cases: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """method -> case -> row, for those of `cases` that were measured."""
    wanted = set(cases)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for key, row in journal.entries().items():
        case, _, method = key.rpartition("//")
        if case in wanted:
            found.setdefault(method, {})[case] = row
    return found


def commits(journal: Journal) -> list[str]:
    """At which commits rows were measured, the first one first."""
    return list(dict.fromkeys(row["commit"] for row in journal.entries().values()))
