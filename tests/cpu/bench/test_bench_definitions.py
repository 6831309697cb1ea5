"""A move, an import and a comment leave a result as it is; a changed definition does not."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.record import about as about_module

SOURCES = {
    "src/legokv/__init__.py": '"""The package."""\n_HOMES = {"link": "legokv.link"}\n',
    "src/legokv/link.py": (
        '"""Links chunks."""\nimport time as clock\nfrom pathlib import Path\n\n'
        "from legokv import pages\nfrom legokv.rope import turn\n\n"
        "ROOT = Path(__file__).resolve().parents[2]\n\n\n"
        'def link(chunks):\n    """Linked chunks."""\n'
        "    started = clock.monotonic()\n"
        "    return [turn(pages.take(chunk)) for chunk in chunks], started\n"
    ),
    "src/legokv/pages.py": (
        "from legokv.rope import turn\n\n\ndef take(n):\n    return turn(n) + 1\n"
    ),
    "src/legokv/rope.py": "BASE = 10000\n\n\ndef turn(x):\n    return x * BASE\n",
    "plugins/rope.cu": '#include "rope.h"\n// Turns.\n__global__ void turn() {\n  x += 1;\n}\n',
    "benchmarks/report/words.py": "WORDS = 1\n",
}


class Repository:
    """A repository of `SOURCES` with one commit, `first`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for path, text in SOURCES.items():
            self.write(path, text)
        self._git("init")
        self.first = self.commit()

    def write(self, path: str, text: str) -> None:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_text(text)

    def move(self, path: str, target: str) -> None:
        self.write(target, (self.root / path).read_text())
        (self.root / path).unlink()

    def replace(self, path: str, old: str, new: str) -> None:
        text = (self.root / path).read_text()
        assert old in text
        self.write(path, text.replace(old, new))

    def commit(self) -> str:
        self._git("add", "--all")
        self._git("commit", "-m", "a commit")
        return self._git("rev-parse", "--short", "HEAD")

    def _git(self, *words: str) -> str:
        name = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        command = ["git", *name, "-C", str(self.root), *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    monkeypatch.setattr(about_module, "ROOT", tmp_path)
    return Repository(tmp_path)


def move_alone(repository: Repository) -> None:
    repository.move("src/legokv/rope.py", "src/legokv/model/rope.py")


def move_with_imports(repository: Repository) -> None:
    """Modules get another folder and another name, and each line that says where they are."""
    repository.move("src/legokv/link.py", "src/legokv/link/linking.py")
    repository.move("src/legokv/pages.py", "src/legokv/chunks/pool.py")
    repository.write("src/legokv/link/__init__.py", '"""Linking."""\n')
    linking = "src/legokv/link/linking.py"
    repository.replace(linking, "from legokv import pages", "from legokv.chunks import pool")
    repository.replace(linking, "pages.take", "pool.take")
    repository.replace(linking, "parents[2]", "parents[3]")
    repository.replace("plugins/rope.cu", "rope.h", "model/rope.h")
    repository.replace("src/legokv/__init__.py", '"legokv.link"', '"legokv.link.linking"')


def fold(repository: Repository) -> None:
    """What was imported stands in the same file now."""
    text = (repository.root / "src/legokv/rope.py").read_text()
    (repository.root / "src/legokv/rope.py").unlink()
    repository.replace("src/legokv/pages.py", "from legokv.rope import turn\n", text)
    repository.replace("src/legokv/link.py", "legokv.rope import", "legokv.pages import")


def take_the_name_instead_of_the_module(repository: Repository) -> None:
    path = "src/legokv/link.py"
    repository.replace(path, "from legokv import pages", "from legokv.pages import take as took")
    repository.replace(path, "pages.take", "took")


def import_more(repository: Repository) -> None:
    """For a type checker, inside a function, and to hand it on."""
    block = "from typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from legokv import rope\n"
    repository.replace("src/legokv/pages.py", "from legokv.rope", f"{block}from legokv.rope")
    repository.replace("src/legokv/rope.py", "    return", "    import time\n\n    return")
    handed_on = 'from legokv.rope import turn\n\n__all__ = ["turn"]\n_HOMES'
    repository.replace("src/legokv/__init__.py", "_HOMES", handed_on)


def reword(repository: Repository) -> None:
    repository.replace("src/legokv/link.py", "Linked chunks.", "The chunks, linked.")
    repository.replace("src/legokv/rope.py", "BASE = 10000", "BASE = 10000  # the usual one")
    repository.replace("plugins/rope.cu", "// Turns.", "// Turns a head.")
    repository.replace("benchmarks/report/words.py", "1", "2")


@pytest.mark.parametrize(
    "edit",
    [
        move_alone,
        move_with_imports,
        fold,
        take_the_name_instead_of_the_module,
        import_more,
        reword,
    ],
)
def test_code_that_stands_elsewhere_is_the_code_that_was_measured(
    repository: Repository, edit: Callable[[Repository], None]
):
    edit(repository)
    repository.commit()
    assert about_module.measured_since(repository.first) is False


@pytest.mark.parametrize(
    ("path", "old", "new"),
    [
        ("src/legokv/rope.py", "return x * BASE", "return x * BASE + 1"),
        ("src/legokv/rope.py", "BASE = 10000", "BASE = 500000"),
        ("src/legokv/link.py", "clock.monotonic", "clock.perf_counter"),
        ("src/legokv/link.py", "import time as clock", "import other as clock"),
        ("src/legokv/link.py", "pages.take(chunk)", "pages.give(chunk)"),
        ("src/legokv/__init__.py", '"link":', '"chain":'),
        ("plugins/rope.cu", "x += 1;", "x += 2;"),
        # An import, which is not looked at, may lead to the new one, or past the one that is gone.
        ("src/legokv/rope.py", "BASE = 10000", "BASE = 10000\nSCALE = 2"),
        ("src/legokv/pages.py", "def take(n):\n    return turn(n) + 1\n", ""),
    ],
)
def test_one_other_line_of_code_is_other_code_also_in_a_file_that_moved(
    repository: Repository, path: str, old: str, new: str
):
    move_with_imports(repository)
    moved = {
        "src/legokv/link.py": "src/legokv/link/linking.py",
        "src/legokv/pages.py": "src/legokv/chunks/pool.py",
    }
    where = moved.get(path, path)
    old = old.replace("pages.", "pool.")
    repository.replace(where, old, new.replace("pages.", "pool."))
    repository.commit()
    assert about_module.measured_since(repository.first) is True
