"""What a session of tests makes once, also where several workers run them."""

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The session's folder of that name, which the first who asks makes. Not to be written to.

    Others wait meanwhile. What failed half made is made anew by the next who asks.
    """
    own = factory.getbasetemp()
    # A worker's by its name: a test's own pytest has the worker's environment, and no workers.
    shared = own.parent if own.name.startswith("popen-") else own
    folder = shared / "made" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    done = folder.with_name(f"{folder.name}.done")
    with folder.with_name(f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            done.touch()
    return folder
