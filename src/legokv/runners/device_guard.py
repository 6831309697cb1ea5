"""A runner on one CUDA device: every call is on that device, and a device that is lost is said."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from legokv.errors import DeviceLost, LegokvError
from legokv.runners.protocol import Runner
from legokv.step.batch import StepBatch

log = logging.getLogger(__name__)


class DeviceGuard:
    """Does what `runner` does, with its device current in the thread that calls.

    Launchers and streams go by a thread's current device, and a new thread's is device 0. Some
    errors of CUDA leave a process' context of no use (an access out of bounds, a failed launch):
    every later call fails too, with the words of the first. After any error the device is asked
    whether it goes on; if not, `lost` says so and each call raises it.
    """

    def __init__(self, runner: Runner) -> None:
        self.num_pages, self.page_size = runner.num_pages, runner.page_size
        self.description = runner.description
        self.device, self.no_attention = runner.device, runner.no_attention
        self.drawing, self.gives_drift = runner.drawing, runner.gives_drift
        self.lost: LegokvError | None = None
        self._runner = runner

    def run(self, batch: StepBatch) -> Tensor:
        with self._on_device():
            return self._runner.run(batch)

    def attention_mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        with self._on_device():
            return self._runner.attention_mass(batch, num_rows)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        with self._on_device():
            self._runner.copy_pages(sources, targets)

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        with self._on_device():
            self._runner.import_pages(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        with self._on_device():
            return self._runner.export_pages(pages, num_tokens)

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if self.lost:
            raise self.lost
        with torch.cuda.device(self.device):
            try:
                yield
            except Exception as error:
                self.lost = _loss(error, lambda: torch.cuda.synchronize(self.device))
                if self.lost is None:
                    raise
                log.critical("%s", self.lost, exc_info=error)
                raise self.lost from error


def _loss(error: Exception, synchronize: Callable[[], None]) -> DeviceLost | None:
    """What became of the device after an error: None if it still computes."""
    try:
        synchronize()
    except Exception as still:  # noqa: BLE001 - torch has no class for it in all its versions
        first, words = (str(each).strip().splitlines() or [""] for each in (error, still))
        return DeviceLost(
            f"the GPU computes nothing more in this process, which must start again: {words[0]}; "
            f"it began with {type(error).__name__}: {first[0]}"
        )
    return None
