"""constraints.txt pins and hashes everything that an installation gets."""

import re
import subprocess
import sys
from importlib import metadata

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from paths import ROOT

LOCK = (ROOT / "constraints.txt").read_text()
PINS = {
    canonicalize_name(name): (version, re.findall(r"--hash=sha256:([0-9a-f]{64})\b", rest))
    for name, version, rest in re.findall(
        r"^([A-Za-z0-9_.-]+)==(\S+)((?:.*\\\n)*.*)$", LOCK, re.MULTILINE
    )
}


def requirements(*extras: str) -> list[Requirement]:
    script = [sys.executable, str(ROOT / "build" / "requirements.py"), *extras]
    lines = subprocess.run(script, check=True, text=True, stdout=subprocess.PIPE).stdout
    return [Requirement(line) for line in lines.splitlines()]


def test_every_pin_has_a_hash_and_nothing_else_is_a_requirement() -> None:
    lines = [line for line in LOCK.splitlines() if line and line[0] not in " #"]
    assert len(PINS) == len(lines) > 100
    assert [name for name, (_, hashes) in PINS.items() if not hashes] == []


@pytest.mark.parametrize("requirement", requirements("all"), ids=str)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    version, _ = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_what_is_installed_is_what_is_pinned() -> None:
    """Also what came with something else: the lock is whole. Only what the lock's roots lead to."""
    for name in sorted(reached(requirements("all"))):
        installed = metadata.version(name).split("+")[0]  # 2.13.0+cpu is a build of 2.13.0
        assert installed == PINS[name][0], name


def reached(roots: list[Requirement]) -> set[str]:
    names: set[str] = set()
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in roots]
    visited = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        names.add(name)
        for each in map(Requirement, metadata.requires(name) or ()):
            asked = (canonicalize_name(each.name), frozenset(each.extras))
            if asked not in visited and applies(each, extras):
                visited.add(asked)
                waiting.append(asked)
    return names


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""})
