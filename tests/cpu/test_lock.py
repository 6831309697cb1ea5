"""constraints.txt pins and hashes everything that an installation gets."""

import hashlib
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


def is_whole(lock: str) -> bool:
    """Whether the lines are those that build/lock.py wrote."""
    seal = re.match(r"# .*\n# SHA-256 of the lines below: ([0-9a-f]{64})\n", lock)
    assert seal is not None, lock[:200]
    return seal[1] == hashlib.sha256(lock[seal.end() :].encode()).hexdigest()


def test_a_lock_of_which_a_hash_or_a_package_is_gone_or_one_is_more_is_not_whole() -> None:
    assert is_whole(LOCK), "constraints.txt was changed by hand: run build/lock.py"
    a_hash = r"    --hash=sha256:[0-9a-f]{64} \\\n"
    for changed in (
        re.sub(a_hash, "", LOCK, count=1),
        re.sub(r"^aiosignal==.*\n(?:    .*\n)+", "", LOCK, flags=re.MULTILINE),
        f"{LOCK}stray==1.0 \\\n    --hash=sha256:{'0' * 64}\n",
        LOCK.replace("sha256:0", "sha256:1", 1),
    ):
        assert changed != LOCK
        assert not is_whole(changed)


def test_no_package_is_pinned_that_nothing_asks_for_anywhere() -> None:
    cuda = {name for name in PINS if name.startswith(("nvidia-", "cuda-")) or name == "triton"}
    asked = reached(requirements("all"), everywhere=True) | cuda  # of PyTorch's builds for GPUs
    assert sorted(PINS.keys() - asked) == []


@pytest.mark.parametrize("requirement", requirements("all"), ids=str)
def test_what_pyproject_asks_for_is_pinned_within_its_bounds(requirement: Requirement) -> None:
    version, _ = PINS[canonicalize_name(requirement.name)]
    assert requirement.specifier.contains(version)


def test_what_is_installed_is_what_is_pinned() -> None:
    """Also what came with something else: the lock is whole. Only what the lock's roots lead to."""
    for name in sorted(reached(requirements("all"))):
        installed = metadata.version(name).split("+")[0]  # 2.13.0+cpu is a build of 2.13.0
        assert installed == PINS[name][0], name


def reached(roots: list[Requirement], *, everywhere: bool = False) -> set[str]:
    """What the roots lead to, on this machine or `everywhere`."""
    names: set[str] = set()
    waiting = [(canonicalize_name(r.name), frozenset(r.extras)) for r in roots]
    visited = set(waiting)
    while waiting:
        name, extras = waiting.pop()
        names.add(name)
        for each in map(Requirement, requires(name)):
            asked = (canonicalize_name(each.name), frozenset(each.extras))
            if asked not in visited and (applies(each, extras) or (everywhere and free(each))):
                visited.add(asked)
                waiting.append(asked)
    return names


def requires(name: str) -> list[str]:
    """What an installed package asks for; nothing of one that is not for this machine."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def free(requirement: Requirement) -> bool:
    """Whether it is asked for on some machine, whatever extras are chosen."""
    return "extra" not in str(requirement.marker)


def applies(requirement: Requirement, extras: frozenset[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": e}) for e in extras | {""})
