"""TensorRT's progress monitor, as events: which phase, how many of its steps are done."""

from collections.abc import Callable
from typing import Any

Report = Callable[[str, int, int], None]
"""(phase, steps done, steps in all)"""

# Phases deeper than this come by the thousand, one for each tensor.
MAX_DEPTH = 2


def progress_monitor(trt: Any, report: Report) -> Any:
    """An IProgressMonitor that reports the outer phases; the builder must not outlive it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases(report)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

    return Monitor()


class Phases:
    """The phases that are under way, each with its depth and its number of steps."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[str, tuple[int, int]] = {}

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        depth = self._open[parent][0] + 1 if parent in self._open else 0
        self._open[name] = (depth, num_steps)
        self._tell(name, 0)

    def step(self, name: str, step: int) -> None:
        self._tell(name, step + 1)

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def _tell(self, name: str, done: int) -> None:
        depth, num_steps = self._open.get(name, (MAX_DEPTH + 1, 0))
        if depth <= MAX_DEPTH:
            self._report(name, done, num_steps)
