"""A server program the tests need: found, or unpacked from Debian's packages without root."""

import os
import shutil
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

DOWNLOADS = ROOT / "out" / "downloads"


@dataclass(frozen=True)
class Program:
    """A program that runs here, and the environment in which it finds its libraries."""

    path: Path
    environment: dict[str, str]


@cache
def debian_program(
    names: tuple[str, ...], packages: tuple[str, ...], version_option: str = "-v"
) -> Program:
    """The first of the programs that is on PATH, else the last one from these packages.

    It is tried with its `version_option`. The test that asks is skipped where neither can be had,
    with the reason.
    """
    for name in names:
        if (found := shutil.which(name)) is not None:
            return Program(Path(found), dict(os.environ))
    root = DOWNLOADS / names[-1]
    if not root.exists():
        _unpack(packages, root)
    (path,) = root.glob(f"usr/*bin/{names[-1]}")
    libraries = {str(file.parent) for file in root.glob("usr/lib/*/*.so.*")}
    environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(sorted(libraries))}
    tried = subprocess.run(
        [path, version_option], env=environment, capture_output=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"{path} does not run here: {tried.stderr.decode()[-200:]}")
    return Program(path, environment)


def _unpack(packages: tuple[str, ...], root: Path) -> None:
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip(f"no {root.name} on PATH, and no Debian packages here")
    making = root.with_name(f".{root.name}.{os.getpid()}")
    making.mkdir(parents=True)
    try:
        _run(["apt-get", "download", *packages], making)
        for package in making.glob("*.deb"):
            _run(["dpkg-deb", "-x", package, making / "root"], making)
        if not root.exists():
            (making / "root").rename(root)
    finally:
        shutil.rmtree(making)


def _run(command: list[str | Path], folder: Path) -> None:
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if result.returncode:
        pytest.skip(f"{command[0]} could not get the packages: {result.stderr[-300:]}")
