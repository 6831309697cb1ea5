"""The processes in which Triton runs the models, from the kernel's own lists (Linux).

Triton 24.10 neither starts a model's process again that died nor stops calling itself ready.
"""

import os
import resource
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from legokv.errors import ServerError
from legokv.serving.own_folders import own_folder, owner_is_gone
from legokv.serving.settings import Settings
from legokv.whole_files import PRIVATE_FILE

_PROCESSES = Path("/proc")
_ENDED = frozenset("ZX")


class ModelWatch:
    """Which processes a server has started for its models, and which of them have ended."""

    def __init__(self, server: int) -> None:
        self._server = server
        self._models: dict[int, str] = {}

    def look(self) -> tuple[str, ...]:
        """Watch what the server has started by now; the models whose process has ended.

        One that ended before it was seen, and that the server has not noticed, has no name.
        """
        unnamed = []
        for pid in _children(self._server) - self._models.keys():
            model = model_of(pid)
            if model is not None:
                self._models[pid] = model
            elif not is_running(pid):
                unnamed.append(f"unknown ({pid})")
        return (*self.lost(), *unnamed)

    def lost(self) -> tuple[str, ...]:
        """The models whose process was seen and has ended."""
        return tuple(model for pid, model in self._models.items() if not is_running(pid))


def child_processes(pid: int) -> frozenset[int]:
    """Numbers of the processes that `pid` has started and that still run; none if it is gone."""
    return frozenset(child for child in _children(pid) if is_running(child))


def _children(pid: int) -> frozenset[int]:
    """The same with those that have ended and whose status `pid` has not fetched."""
    children: set[int] = set()
    # A thread or the whole process may end while it is looked at.
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in (_PROCESSES / str(pid) / "task").iterdir():
            children.update(map(int, (thread / "children").read_text().split()))
    return frozenset(children)


def model_of(pid: int) -> str | None:
    """The name of the model that a process runs; None while or if its command names none."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for word in (_PROCESSES / str(pid) / "cmdline").read_text().split("\0"):
            if word.endswith("/model.py"):
                return Path(word).parent.parent.name
    return None


def is_running(pid: int) -> bool:
    """Whether a process is there and more than a status its parent has not fetched yet."""
    try:
        status = (_PROCESSES / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in _ENDED


def raise_descriptor_limit() -> None:
    """Let this process, and those it starts, open as many files and connections as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_descriptors(pid: int) -> tuple[int, int]:
    """How many descriptors a process has open, and how many it may; (0, 1) if it is gone."""
    try:
        return (
            len(os.listdir(_PROCESSES / str(pid) / "fd")),
            resource.prlimit(pid, resource.RLIMIT_NOFILE)[0],
        )
    except (FileNotFoundError, ProcessLookupError):
        return 0, 1


_NAMES = ("http_port", "grpc_port", "metrics_port")
_API_NAME = "api_port"


def with_ports(settings: Settings) -> Settings:
    """The settings with all ports chosen; ServerError that names one already in use.

    A chosen port is free now; another program may still take it before the server does.
    """
    names = (*_NAMES, _API_NAME) if settings.api == "on" else _NAMES
    hosts = {**dict.fromkeys(names, settings.triton_host), _API_NAME: settings.host}
    sockets = {name: _bound(hosts[name], name, getattr(settings, name)) for name in names}
    try:
        return replace(settings, **{name: s.getsockname()[1] for name, s in sockets.items()})
    finally:
        for bound in sockets.values():
            bound.close()


def _bound(host: str, name: str, port: int) -> socket.socket:
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    # As the server does: connections of an ended one that linger are no obstacle.
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(1)
    except OSError as error:
        bound.close()
        raise ServerError(
            f"{name} {port} on {host} cannot be used: {error.strerror}. Choose another with "
            f"--{name.replace('_', '-')}, or 'auto' for a free one"
        ) from None
    return bound


_SHARED_MEMORY = Path("/dev/shm")
_MEMORY_PREFIX = "legokv_"
_FOLDER_PREFIX = "legokv-serve-"


@contextmanager
def server_folder() -> Iterator[Path]:
    """A folder of temporary files for this process's server, gone after the block."""
    with own_folder(_FOLDER_PREFIX) as folder:
        yield folder


@contextmanager
def shared_memory_prefix() -> Iterator[str]:
    """What names of this process's shared memory begin with; none of it is left after the block."""
    for file in _SHARED_MEMORY.glob(f"{_MEMORY_PREFIX}*_*"):
        if owner_is_gone(file.name.removeprefix(_MEMORY_PREFIX).split("_")[0]):
            with suppress(PermissionError):  # another user's
                file.unlink(missing_ok=True)
    prefix = f"{_MEMORY_PREFIX}{os.getpid()}_"
    try:
        yield prefix
    finally:
        for file in _SHARED_MEMORY.glob(f"{prefix}*"):
            file.unlink(missing_ok=True)


def keep_memory_private(maps: Path = Path("/proc/self/maps")) -> None:
    """Take the shared memory of the process with these `maps` from other users.

    For a model's process to call before it is ready: Triton makes the memory readable by all,
    whatever the umask is, and requests and answers lie in it.
    """
    lines = (line.split(maxsplit=5) for line in maps.read_text().splitlines())
    names = {Path(parts[5]) for parts in lines if len(parts) == 6}
    for file in names:
        if file.parent == _SHARED_MEMORY and file.name.startswith(_MEMORY_PREFIX):
            with suppress(FileNotFoundError):  # unlinked already
                file.chmod(PRIVATE_FILE)
