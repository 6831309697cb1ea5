"""A server whose steps fail while a test says so: it runs in an environment of its own."""

import sys
import sysconfig
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paths import TESTS

IN_SERVER = Path(__file__).parent / "in_server"


class Faults:
    """Runs `python` with `environment` to serve; in the block of `raising` every step fails."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "fault"
        self.environment = {"FAULT_FILE": str(self._file)}
        self.python = _python_that_imports("failing_steps", folder / "venv")

    @contextmanager
    def raising(self, kind: str) -> Iterator[None]:
        """kind: an exception's name, with its module unless it is Python's own."""
        written = self._file.with_suffix(".new")
        written.write_text(kind)
        written.rename(self._file)
        try:
            yield
        finally:
            self._file.unlink()


def _python_that_imports(module: str, folder: Path) -> str:
    """The Python of a new environment: it has what this one has, and imports a module at its start.

    Triton's processes look for packages where their Python was installed, and at no variable.
    """
    venv.create(folder, symlinks=True)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))
    # None of the tests' own folders: one is called as a package that torch looks for.
    places = [place for place in sys.path if place and TESTS not in Path(place).parents]
    lines = [*places, str(IN_SERVER), f"import {module}"]
    (packages / "these.pth").write_text("\n".join(lines))
    return str(folder / "bin" / "python")
