"""What leaves the pools and what comes into them, and in which order on a GPU's two streams."""

import inspect
import logging
import random
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from legokv.built.folder import read_engine_folder
from legokv.link.drift import Drift
from legokv.runners.page_store import ImportStream, PageStore
from legokv.step.batch import PageTables, Piece, StepBatch, step_batch
from legokv.step.graph import graph_shape

EMPTY = torch.empty


def not_pinned(*sizes: object, pin_memory: bool = False, **about: object) -> Tensor:
    if pin_memory:
        raise RuntimeError("CUDA error: out of memory\nCompile with TORCH_USE_CUDA_DSA")
    return EMPTY(*sizes, **about)  # type: ignore[call-overload, no-any-return]


def test_where_no_memory_can_be_pinned_chunks_leave_all_the_same_and_the_log_says_it_once(
    tiny_engine_folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    facts = read_engine_folder(tiny_engine_folder("llama"))
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size)
    store = PageStore(graph, 3, torch.device("cpu"))
    # As on a GPU.
    store._pins = True
    for pool in store.pools:
        pool.normal_()
    monkeypatch.setattr(torch, "empty", not_pinned)
    with caplog.at_level(logging.WARNING, "legokv"):
        found = [store.export_pages([2, 0], facts.page_size + 3) for _ in range(2)]
    for kv in found:
        assert torch.equal(kv[1, 0, : facts.page_size], store.pools[1][2, 0])
        assert torch.equal(kv[1, 1, facts.page_size :], store.pools[1][0, 1, :3])
    (line,) = caplog.messages
    assert line.startswith(f"no {found[0].nbytes} bytes of memory can be pinned here (CUDA error:")
    assert "DSA" not in line


class Event:
    """`torch.cuda.Event`: what had been put on a stream when it was recorded."""

    def __init__(self, device: "Device", behind: set[int]) -> None:
        self._device, self.behind = device, behind

    def query(self) -> bool:
        return self.behind <= self._device.done


class Stream:
    """`torch.cuda.Stream`; `behind` is all work that what comes next on it is behind."""

    def __init__(self, device: "Device") -> None:
        self._device = device
        self.behind: set[int] = set()

    def record_event(self, event: None = None) -> Event:
        return Event(self._device, set(self.behind))

    def wait_event(self, event: Event) -> None:
        self.behind |= event.behind

    def wait_stream(self, stream: "Stream") -> None:
        self.behind |= stream.behind


class Device:
    """Two streams, and what each piece of work on them touches and is behind."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.own, self.imports = Stream(self), Stream(self)
        self.current = self.own
        self.works: list[tuple[frozenset[int], set[int]]] = []
        self.done: set[int] = set()
        monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: self.current)
        monkeypatch.setattr(torch.cuda, "stream", self._on)

    @contextmanager
    def _on(self, stream: Stream):  # type: ignore[no-untyped-def]
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def put(self, pages: Sequence[int]) -> int:
        """Work on the current stream; its number."""
        self.works.append((frozenset(pages), set(self.current.behind)))
        self.current.behind.add(len(self.works) - 1)
        return len(self.works) - 1

    def is_behind(self, later: int, earlier: int) -> bool:
        return earlier in self.works[later][1] or earlier in self.done


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    return Device(monkeypatch)


def imported(device: Device, stream: ImportStream, pages: Sequence[int]) -> int:
    with stream.importing(pages):
        assert device.current is device.imports
        return device.put(pages)


def worked(device: Device, stream: ImportStream, pages: Sequence[int]) -> int:
    with stream.working(np.array(pages, np.int32)):
        assert device.current is device.own
        return device.put(pages)


def test_the_streams_and_events_of_the_stand_in_are_called_as_torch_s() -> None:
    for standin, real in ((Event, torch.cuda.Event), (Stream, torch.cuda.Stream)):
        for name in ("query", "record_event", "wait_event", "wait_stream"):
            if name in vars(standin):
                ours, theirs = (inspect.signature(getattr(c, name)) for c in (standin, real))
                assert list(ours.parameters) == list(theirs.parameters), name


def test_an_import_is_beside_a_step_of_other_pages_and_behind_one_of_its_own(
    device: Device,
) -> None:
    stream = ImportStream(device.imports)
    step = worked(device, stream, [1, 2, 3])
    others, own = imported(device, stream, [4, 5]), imported(device, stream, [3])
    assert not device.is_behind(others, step)
    assert device.is_behind(own, step)


def test_a_step_waits_for_the_imports_that_it_reads_and_for_no_later_one(device: Device) -> None:
    stream = ImportStream(device.imports)
    first, second, third = (imported(device, stream, [page]) for page in (1, 2, 3))
    without = worked(device, stream, [7])
    reader = worked(device, stream, [2, 7])
    assert [device.is_behind(without, each) for each in (first, second, third)] == [False] * 3
    assert [device.is_behind(reader, each) for each in (first, second, third)] == [
        True,
        True,
        False,
    ]


def test_whatever_touches_one_page_is_in_order_and_what_is_done_is_forgotten(
    device: Device,
) -> None:
    chance = random.Random(18)
    stream = ImportStream(device.imports)
    beside = 0
    for number in range(600):
        pages = chance.sample(range(24), chance.randint(1, 4))
        does = imported if chance.random() < 0.5 else worked
        later = does(device, stream, pages)
        assert later == number
        for earlier in range(max(0, later - 40), later):
            if device.works[earlier][0] & set(pages):
                assert device.is_behind(later, earlier), (earlier, later, pages)
            beside += not device.is_behind(later, earlier)
        if chance.random() < 0.1:
            device.done |= set(range(later - 3))
    assert beside > 500, "nothing was beside anything"
    device.done |= set(range(600))
    worked(device, stream, [0])
    assert (len(stream._imports), len(stream._works)) == (0, 1)


def test_a_step_waits_for_an_import_that_failed_after_its_launch(device: Device) -> None:
    stream = ImportStream(device.imports)

    def launch_and_fail() -> None:
        with stream.importing([1]):
            device.put([1])
            raise MemoryError

    with pytest.raises(MemoryError):
        launch_and_fail()
    assert device.current is device.own
    assert device.is_behind(worked(device, stream, [1]), 0)


@dataclass(frozen=True)
class Opened:
    """A store beside whose steps pages of zeros come in."""

    device: Device
    store: PageStore
    kv: Tensor

    @classmethod
    def of(cls, device: Device, folder: Path) -> "Opened":
        facts = read_engine_folder(folder)
        graph = graph_shape(facts.model, facts.dtypes, facts.page_size)

        def import_kv(pools: Tensor, kv: Tensor, pages: Tensor) -> None:
            device.put(pages.tolist())

        beside = ImportStream(device.imports)
        store = PageStore(graph, 8, torch.device("cpu"), import_kv, beside=beside)
        size = facts.page_size
        return cls(
            device,
            store,
            torch.zeros(graph.num_layers, 2, size, graph.num_kv_heads, graph.head_size),
        )

    def piece(self, *seen: int, drifts: tuple[Drift, ...] = ()) -> Piece:
        """A token that sees so many pages, and is written to another, page 2."""
        size = self.store.page_size
        at = np.array([len(seen) * size], np.int32)
        rows = [(page, 0, n * size, size) for n, page in enumerate(seen)]
        return Piece(at, at, at, 2 * size + at % size, np.array(rows, np.int32), drifts)

    def step(self, batch: StepBatch) -> int:
        with self.store.step(batch):
            return self.device.put([])

    def imported(self, page: int) -> int:
        self.store.import_pages([page], self.kv)
        return len(self.device.works) - 1


@pytest.fixture
def opened(device: Device, tiny_engine_folder: Callable[[str], Path]) -> Opened:
    return Opened.of(device, tiny_engine_folder("llama"))


def test_imports_are_behind_the_zeros_that_the_pools_begin_with(
    device: Device, tiny_engine_folder: Callable[[str], Path]
) -> None:
    zeros = device.put(range(8))
    opened = Opened.of(device, tiny_engine_folder("llama"))
    assert device.is_behind(opened.imported(4), zeros)


def test_an_import_is_behind_a_step_whose_tables_were_written_over_for_the_next(
    opened: Opened,
) -> None:
    tables = PageTables()
    first = step_batch([opened.piece(5, 6)], tables)
    one = opened.step(first)
    second = step_batch([opened.piece(1, 7)], tables)
    assert second.pages is first.pages
    another = opened.step(second)
    assert not opened.device.is_behind(opened.imported(4), another)
    own = opened.imported(6)
    assert opened.device.is_behind(own, one)
    assert not opened.device.is_behind(own, another)


def test_a_drift_s_key_positions_are_no_pages(opened: Opened) -> None:
    drift = Drift(0, np.array([0], np.int32), np.array([(5, 6, 7)], np.int32))
    step = opened.step(step_batch([opened.piece(1, drifts=(drift,))]))
    assert [opened.device.is_behind(opened.imported(page), step) for page in (7, 4, 5)] == [
        False,
        False,
        True,
    ]
    another = opened.step(step_batch([opened.piece(1, drifts=(drift,))]))
    assert opened.device.is_behind(opened.imported(6), another)


def test_a_store_brings_pages_in_beside_the_steps_and_copies_and_gives_them_behind_imports(
    opened: Opened,
) -> None:
    device, store = opened.device, opened.store

    def after_a_step(*pages: int) -> list[bool]:
        """Whether each of the imports is behind the step before them."""
        step = opened.step(step_batch([opened.piece(5, 6), opened.piece(5)]))
        return [device.is_behind(opened.imported(page), step) for page in pages]

    # The second sequence's table is filled up with rows of page 0, which have no slots.
    assert after_a_step(0, 2) == [False, True]
    assert after_a_step(7, 6) == [False, True]
    imports = [len(device.works) + 1, len(device.works) + 2]
    assert after_a_step(6, 2) == [True, True]
    store.copy_pages([6], [7])
    copied = device.put([7])
    assert [device.is_behind(copied, each) for each in imports] == [True, False]
    store.export_pages([2], store.page_size)
    assert device.is_behind(device.put([2]), imports[1])
