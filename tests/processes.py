"""Looking at processes that a test has started, by the kernel's own lists."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def only_child(pid: int) -> int:
    """The process that `pid` started, as soon as it has."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    return int(soon(lambda: children.read_text().split())[0])


def has_ended(pid: int) -> bool:
    """Whether a process runs no more; its starter may not have looked at how it ended."""
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def soon(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as it is true, within a minute."""
    deadline = time.monotonic() + 60
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found
