"""A process that does not outlive the one that started it, even if that one is killed (Linux)."""

import ctypes
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(number: signal.Signals) -> None:
    """To be called in the new process: the kernel sends it `number` when its starter ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)
