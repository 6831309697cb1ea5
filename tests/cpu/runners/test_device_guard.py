"""Every call is on the runner's own device, and a device that is lost is said by its cause.

There is no GPU here: torch's two functions are in their places, and note what they are asked.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from legokv.engine.engine import Engine
from legokv.errors import DeviceLost, EngineMismatch, StepFailed
from legokv.runners import opening
from legokv.runners.device_guard import DeviceGuard

SECOND = torch.device("cuda", 1)


class Device:
    """A GPU's state: what is current, and what each synchronisation says."""

    def __init__(self) -> None:
        self.current: torch.device | None = None
        self.words = ""

    def synchronize(self, device: torch.device) -> None:
        assert device == self.current == SECOND
        if self.words:
            raise RuntimeError(self.words)

    @contextmanager
    def use(self, device: torch.device) -> Iterator[None]:
        self.current = device
        yield
        self.current = None


class Runner:
    """Computes on SECOND alone; raises `error` once it is set."""

    num_pages, page_size, device, lost = 4, 16, SECOND, None
    gives_drift, no_attention, drawing, description = True, None, None, "tests"
    error: Exception | None = None

    def __init__(self, device: Device) -> None:
        self._device = device

    def _call(self, *arguments: object) -> str:
        assert self._device.current == SECOND
        if self.error:
            raise self.error
        return "done"

    run = attention_mass = copy_pages = import_pages = export_pages = _call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    monkeypatch.setattr(torch.cuda, "device", device.use)
    monkeypatch.setattr(torch.cuda, "synchronize", device.synchronize)
    return device


CALLS = [
    lambda runner: runner.run(None),
    lambda runner: runner.attention_mass(None, 1),
    lambda runner: runner.copy_pages([1], [2]),
    lambda runner: runner.import_pages([1], None),
    lambda runner: runner.export_pages([1], 3),
]


@pytest.mark.parametrize("call", CALLS)
def test_each_call_is_on_the_runners_own_device(
    device: Device, call: Callable[[DeviceGuard], object]
) -> None:
    call(DeviceGuard(Runner(device)))  # type: ignore[arg-type]
    assert device.current is None


def test_an_error_that_the_device_gets_over_is_that_calls_alone(device: Device) -> None:
    runner = Runner(device)
    guard = DeviceGuard(runner)  # type: ignore[arg-type]
    runner.error = StepFailed("a shape is refused")
    with pytest.raises(StepFailed, match=r"^a shape is refused$"):
        guard.run(None)  # type: ignore[arg-type]
    runner.error = None
    assert guard.lost is None
    assert guard.run(None) == "done"  # type: ignore[arg-type]


def test_an_error_that_the_device_does_not_get_over_is_said_by_every_call_after(
    device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    runner = Runner(device)
    guard = DeviceGuard(runner)  # type: ignore[arg-type]
    runner.error = RuntimeError("CUDA: an illegal memory access\nmore")
    device.words = "CUDA error: an illegal memory access was encountered\nmore"
    words = (
        r"computes nothing more .*: CUDA error: an illegal memory access was encountered; "
        r"it began with RuntimeError: CUDA: an illegal memory access$"
    )
    with pytest.raises(DeviceLost, match=words):
        guard.run(None)  # type: ignore[arg-type]
    runner.error = None
    for call in CALLS:
        with pytest.raises(DeviceLost, match=words):
            call(guard)  # type: ignore[no-untyped-call]
    assert guard.lost is not None
    assert "computes nothing more" in caplog.text


def test_a_gpu_of_a_number_that_is_not_there_is_refused_with_the_numbers(
    tiny_engine_folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    settings = opening.EngineSettings(gpu=2)
    with pytest.raises(EngineMismatch, match="gpu is 2, and torch sees 2 from number 0 on"):
        opening._gpu(settings)
    assert opening._gpu(opening.EngineSettings(gpu=1)) == SECOND
    # Where the CPU computes, nobody looks for it.
    engine = Engine.open(tiny_engine_folder("llama"), settings=opening.EngineSettings(gpu=2))
    assert engine.lost is None
