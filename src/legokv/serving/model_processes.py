"""The processes in which Triton runs the models, from the kernel's own lists (Linux).

Triton 24.10 neither starts a model's process again that died nor stops calling itself ready.
"""

from contextlib import suppress
from pathlib import Path

_PROCESSES = Path("/proc")
_ENDED = frozenset("ZX")


def child_processes(pid: int) -> frozenset[int]:
    """Numbers of the processes that `pid` has started and that still run; none if it is gone."""
    children: set[int] = set()
    # A thread or the whole process may end while it is looked at.
    with suppress(FileNotFoundError, ProcessLookupError):
        for thread in (_PROCESSES / str(pid) / "task").iterdir():
            children.update(map(int, (thread / "children").read_text().split()))
    return frozenset(child for child in children if is_running(child))


def model_of(pid: int) -> str:
    """The name of the model that a process runs; its number where its command names none."""
    with suppress(FileNotFoundError, ProcessLookupError):
        for word in (_PROCESSES / str(pid) / "cmdline").read_text().split("\0"):
            if word.endswith("/model.py"):
                return Path(word).parent.parent.name
    return str(pid)


def is_running(pid: int) -> bool:
    """Whether a process is there and more than a status its parent has not fetched yet."""
    try:
        status = (_PROCESSES / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in _ENDED
