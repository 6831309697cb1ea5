"""The processes in which Triton runs the models, from the kernel's own lists (Linux).

Triton 24.10 neither starts a model's process again that died nor stops calling itself ready.
"""

from contextlib import suppress
from pathlib import Path

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
