"""One mutant on a copy of the tree: one text replaced, the tests that should notice run."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEST_SECONDS = 120
"""For one test: a mutant that makes it wait for ever is killed by that."""

_PASSED, _FAILED, _NOT_RUN = 0, 1, 3


@dataclass(frozen=True)
class Mutant:
    """`old`, which is in `file` once, becomes `new`; one of `tests` should fail."""

    file: str
    tests: tuple[str, ...]
    breaks: str
    old: str
    new: str

    def place(self, tree: Path) -> str:
        """file:line of the text."""
        before = (tree / self.file).read_text().partition(self.old)[0]
        return f"{self.file.removeprefix('src/legokv/')}:{before.count(chr(10)) + 1}"


@dataclass(frozen=True)
class Ended:
    """How a run of tests ended."""

    status: int
    output: str

    @property
    def passed(self) -> bool:
        return self.status == _PASSED


def unfit(mutants: Iterable[Mutant], tree: Path) -> list[str]:
    """What is wrong with mutants: a text that is not there once, changes nothing, or no test."""
    errors = []
    for mutant in mutants:
        where = f"{mutant.file} ({mutant.breaks})"
        file = tree / mutant.file
        found = file.read_text().count(mutant.old) if file.is_file() else None
        if found is None:
            errors.append(f"{where}: there is no such file")
        elif found != 1:
            errors.append(f"{where}: the text is there {found} times, not once: {mutant.old!r}")
        if mutant.old == mutant.new:
            errors.append(f"{where}: nothing is changed")
        errors += [
            f"{where}: no {test}"
            for test in mutant.tests or ("test",)
            if not (tree / test.partition("::")[0]).is_file()
        ]
    return errors


def copied_tree(root: Path, folder: Path) -> Path:
    """What git has or would take of the tree at `root`, below `folder`."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    )
    tree = folder / "tree"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (root / name).is_file():
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, tree / name)
    # The compiled library is kept by what it was made of, and made of the same here.
    (tree / "out").mkdir(exist_ok=True)
    (tree / "out" / "native").symlink_to(root / "out" / "native")
    return tree


def preload() -> None:
    """Import what all tests import but our own code, for the processes that `run_tests` forks."""
    for module in ("torch", "tokenizers", "transformers.models.llama.modeling_llama"):
        import_module(module)


def run_tests(tree: Path, tests: Sequence[str]) -> Ended:
    """pytest over these files until one test fails, in a process of its own."""
    with tempfile.TemporaryFile() as said:
        child = os.fork()
        if child == 0:
            _become_pytest(tree, tests, said.fileno())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        said.seek(0)
        return Ended(status, said.read().decode(errors="replace"))


def _become_pytest(tree: Path, tests: Sequence[str], output: int) -> NoReturn:
    status = _NOT_RUN
    try:
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.chdir(tree)
        # Python takes a compiled file for its source's if size and second are the same.
        sys.dont_write_bytecode = True
        os.environ |= {"PYTHONPATH": str(tree / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
        sys.path.insert(0, str(tree / "src"))
        limits = (f"timeout={TEST_SECONDS}", f"faulthandler_timeout={2 * TEST_SECONDS}")
        options = [part for limit in limits for part in ("-o", limit)]
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *options, *tests]))
        sys.stdout.flush()
    finally:
        os._exit(status)


def try_mutant(tree: Path, mutant: Mutant) -> str:
    """killed, SURVIVED, or BROKEN: the tests could not even be run, which proves nothing."""
    file = tree / mutant.file
    whole = file.read_text()
    file.write_text(whole.replace(mutant.old, mutant.new))
    try:
        ended = run_tests(tree, mutant.tests)
    finally:
        file.write_text(whole)
    if ended.passed:
        return "SURVIVED"
    if ended.status == _FAILED:
        return "killed"
    print(ended.output)
    return "BROKEN"
