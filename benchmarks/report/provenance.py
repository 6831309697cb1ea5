"""The line under each section that says what its numbers are: device, commit, command, date."""

from collections.abc import Callable
from typing import Any

Changed = Callable[[str], bool | None]

COMMANDS = {
    "fidelity": "python -m benchmarks.reuse fidelity",
    "heads": "python -m benchmarks.reuse heads",
    "answers": "python -m benchmarks.reuse answers",
    "modes": "python -m benchmarks.mode_times",
    "long_documents": "python -m benchmarks.reuse long",
    "quality": "python -m benchmarks.reuse quality",
    "kv_error": "python -m benchmarks.reuse fidelity",
    "attention_mass": "python -m benchmarks.reuse fidelity",
    "stored_forms": "python -m benchmarks.stored_forms",
    "cost": "python -m benchmarks.cost",
    "serving": "python -m benchmarks.serving",
    "peers": "python -m benchmarks.peers",
    "askers": "python -m benchmarks.peers --peers legokv vllm --tasks "
    "'32 askers, one order' '32 askers, shuffled orders'",
}


def provenance(name: str, results: dict[str, Any] | None, changed: Changed) -> str:
    """Where the numbers of `name` come from, marked if the code they depend on has changed."""
    if results is None:
        return f"Not measured: `{COMMANDS[name]}`"
    about = results["about"]
    commits = about.get("commits", [about["commit"]])
    facts = f"{about['device']}; {about['model']}, {about['dtype']}; commit {', '.join(commits)}"
    line = f"{facts}; {about['date']}; {about['num_cases']} measurements; `{about['command']}`"
    mark = {
        True: "**From another commit: the code that was measured has changed since.**",
        None: "**From a commit that this checkout does not have.**",
        False: "",
    }[_worst([changed(commit) for commit in commits])]
    if any(commit.endswith("-dirty") for commit in commits):
        mark += " **Measured with uncommitted changes.**"
    return f"{line} {mark}".strip()


def _worst(changes: list[bool | None]) -> bool | None:
    """Whether any of the commits is of other code; None if one is not known."""
    return None if None in changes else any(changes)
