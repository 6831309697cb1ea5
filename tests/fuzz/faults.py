"""Kills and freezes a server's processes from time to time, as machines and operators do."""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from random import Random

from fuzz.watching import footprint

EVERY_SECONDS = 60
RECOVERY_SECONDS = 45
"""In which a server may refuse, and connections may break: a model's process starts anew."""
FREEZE_SECONDS = 20


class Faults(threading.Thread):
    """Every so often one fault, until it is told to stop. `seen` counts them by their names."""

    def __init__(self, pid: int, seed: int) -> None:
        super().__init__(daemon=True)
        self.seen: Counter[str] = Counter()
        self._pid, self._dice = pid, Random(seed)
        self._ending = threading.Event()
        self._recovered_at = 0.0

    def run(self) -> None:
        while not self._ending.wait(EVERY_SECONDS):
            name, fault = self._dice.choice(_FAULTS)
            self._recovered_at = time.monotonic() + RECOVERY_SECONDS
            pids = [p for p, n in footprint(self._pid).processes.items() if n.startswith(name)]
            if pids:
                self.seen[f"{fault.__name__} {name}"] += 1
                fault(pids[0])

    def stop(self) -> None:
        """Wait until the last fault is over."""
        self._ending.set()
        self.join()
        time.sleep(max(0.0, self._recovered_at - time.monotonic()))

    def recovering(self) -> bool:
        return time.monotonic() < self._recovered_at


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(FREEZE_SECONDS)
    try:
        os.kill(pid, signal.SIGCONT)
    except ProcessLookupError:
        return  # it was found and ended meanwhile


_FAULTS: tuple[tuple[str, Callable[[int], None]], ...] = (
    ("generate", kill), ("documents", kill), ("engine", kill), ("tritonserver", kill),
    ("engine", freeze), ("generate", freeze),
)  # fmt: skip
