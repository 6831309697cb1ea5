"""Where Triton's parts lie in this Python environment, and whether they fit. Starts nothing."""

import codecs
import ctypes.util
import importlib.resources
import importlib.util
import locale
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from legokv.errors import ServerError

_PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_STUB = "triton_python_backend_stub"


@dataclass(frozen=True)
class TritonInstall:
    """The server's files. `library_folders` are what its loader needs besides the system's."""

    server: Path
    backend_files: tuple[Path, ...]
    library_folders: tuple[Path, ...]
    model_repository: Path


def find_triton() -> TritonInstall:
    """The server inside nvidia-pytriton's wheel; ServerError with the next step if unusable."""
    spec = importlib.util.find_spec("pytriton")
    if spec is None or spec.origin is None:
        raise ServerError("nvidia-pytriton is not installed: pip install 'legokv[server]'")
    _check_numpy(metadata.version("numpy"))
    package = Path(spec.origin).parent
    root = package / "tritonserver"
    stub = root / "python_backend_stubs" / _PYTHON / _STUB
    if not stub.is_file():
        raise ServerError(
            f"nvidia-pytriton {metadata.version('nvidia-pytriton')} has no backend for Python "
            f"{_PYTHON} on {platform.machine()}: {stub} does not exist"
        )
    python_library = _python_library_folder()
    bundled = package.parent / "nvidia_pytriton.libs"
    return TritonInstall(
        server=root / "bin" / "tritonserver",
        backend_files=(*(f for f in (root / "backends" / "python").iterdir() if f.is_file()), stub),
        library_folders=(bundled,) if python_library is None else (bundled, python_library),
        model_repository=model_repository(),
    )


def model_repository() -> Path:
    """The three models: inside an installed package, or at the root of a source checkout."""
    package = Path(str(importlib.resources.files("legokv")))
    for folder in (package / "model_repo", package.parent.parent / "model_repo"):
        if (folder / "generate" / "config.pbtxt").is_file():
            return folder
    raise ServerError(f"no model_repo in {package} nor at the root of its source checkout")


def lay_out_backend(install: TritonInstall, folder: Path) -> None:
    """Make `folder` a backend directory: the wheel keeps the stub where the server won't look.

    ServerError for a name that the shell which Triton starts the stub by would not leave as it is.
    """
    _check_shell_word(folder, "set TMPDIR to")
    _check_shell_word(install.model_repository, "install legokv in")
    backend = folder / "python"
    backend.mkdir(parents=True)
    for file in install.backend_files:
        # Links would do, but the server derives the folder of its Python files from the stub's.
        shutil.copy2(file, backend / file.name)


def _check_shell_word(place: Path, next_step: str) -> None:
    if not re.fullmatch(r"[\w./+@%:=,-]+", str(place)):
        raise ServerError(
            f"Triton starts its models by a shell that splits {str(place)!r} at blanks and reads "
            f"signs in it: {next_step} a folder named by letters, digits and any of ./+@%:=,-_"
        )
    codeset = locale.nl_langinfo(locale.CODESET)
    if not str(place).isascii() and codecs.lookup(codeset).name != "utf-8":
        raise ServerError(
            f"Triton's Python reads {str(place)!r} as {codeset}, which lacks some letters: set "
            f"LC_ALL=C.UTF-8, or {next_step} a folder named in ASCII"
        )


def server_environment(install: TritonInstall, environment: dict[str, str]) -> dict[str, str]:
    """`environment` with this Python first on PATH and the server's libraries on the loader's."""
    libraries = [*map(str, install.library_folders), environment.get("LD_LIBRARY_PATH", "")]
    return environment | {
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")]),
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, libraries)),
    }


def _check_numpy(version: str) -> None:
    if int(version.split(".")[0]) >= 2:
        raise ServerError(
            f"numpy {version} is installed, and this Triton corrupts text with numpy 2: "
            "pip install 'numpy<2'"
        )


def _python_library_folder() -> Path | None:
    """Where the stub finds libpython; None if the system's loader does by itself."""
    name = f"libpython{_PYTHON}.so.1.0"
    places = (sysconfig.get_config_var("LIBDIR"), str(Path(sys.base_prefix, "lib")))
    for folder in map(Path, filter(None, places)):
        if (folder / name).is_file():
            return folder
    if ctypes.util.find_library(f"python{_PYTHON}") is None:
        raise ServerError(
            f"Triton's Python backend needs {name}, and {sys.executable} was built without it: "
            f"use a Python built with --enable-shared, or install libpython{_PYTHON}"
        )
    return None
