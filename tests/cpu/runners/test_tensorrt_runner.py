"""The plan's runner with the exported file executed in the plan's place.

No plan has run here: deserialising one needs a GPU. What is proved is all but the runtime itself,
whose calls `test_plan_sessions.py` holds.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from graph_session import LIMITS, GraphSession, graph_runner, plan_of
from onnx_reference import reference_execution
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from legokv.built.plan_limits import LINK, PlanLimits
from legokv.built.settings import EngineSettings
from legokv.engine.engine import Engine
from legokv.errors import InvalidRequest, StepFailed
from legokv.link.drift import Drift
from legokv.runners import Runner
from legokv.runners.plan.buffers import StepBuffers
from legokv.runners.plan.contexts import address_of
from legokv.runners.plan.runner import (
    TensorRTRunner,
    padded_sequences,
    split_batch,
    with_idle_sequences,
)
from legokv.step.batch import Piece, StepBatch, step_batch

NUM_PAGES, PAGE_SIZE = 32, 16


@pytest.fixture(scope="module")
def model(exported: Callable[..., Path]) -> Path:
    return exported("llama", "float32")


@pytest.fixture
def session(model: Path) -> GraphSession:
    return GraphSession(reference_execution(model))


@pytest.fixture
def runner(session: GraphSession, tiny_engine_folder: Callable[[str], Path]) -> TensorRTRunner:
    return graph_runner(tiny_engine_folder("llama"), "float32", session, NUM_PAGES)


@pytest.fixture
def eager(tiny_engine_folder: Callable[[str], Path]) -> Runner:
    folder = tiny_engine_folder("llama")
    return Engine.open(
        folder, settings=EngineSettings(pool_tokens=NUM_PAGES * PAGE_SIZE, attention="torch")
    ).runner


def sequence(page: int, num_tokens: int, first: int = 0) -> Piece:
    """Tokens alone in one page, from position `first`."""
    positions = np.arange(first, first + num_tokens, dtype=np.int32)
    table = np.array([(page, 0, 0, PAGE_SIZE)], np.int32)
    return Piece(positions + page, positions, positions, page * PAGE_SIZE + positions, table)


def decodes(num_sequences: int) -> StepBatch:
    return step_batch([sequence(page, 1) for page in range(num_sequences)])


def stored_kv(seed: int, num_tokens: int) -> torch.Tensor:
    return torch.randn(3, 2, num_tokens, 2, 16, generator=torch.Generator().manual_seed(seed))


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_a_batch_of_more_sequences_than_the_plan_holds_runs_in_parts(
    runner: TensorRTRunner, session: GraphSession, eager: Runner
) -> None:
    batch = step_batch([sequence(page, 1 + page % 3) for page in range(19)])
    assert_close(runner.run(batch), eager.run(batch))
    assert [shapes["logit_rows"] for _, shapes in session.runs] == [(8,), (8,), (3,)]
    assert_close(runner.export_pages(range(19), 19 * 16), eager.export_pages(range(19), 19 * 16))


def test_parts_are_the_batch_in_order() -> None:
    batch = step_batch([sequence(page, 1 + page) for page in range(5)])
    parts = list(split_batch(batch, 2))
    assert np.array_equal(np.concatenate([p.slots for p in parts]), batch.slots)
    assert [p.query_start.tolist() for p in parts] == [[0, 1, 3], [0, 3, 7], [0, 5]]
    assert [p.logit_rows.tolist() for p in parts] == [[0, 2], [2, 6], [4]]
    assert list(split_batch(batch, 5)) == [batch]


def test_decode_steps_have_few_different_page_counts(
    runner: TensorRTRunner, session: GraphSession, eager: Runner
) -> None:
    for num_pages in range(1, 10):
        rows = [(page, 0, page * 16, 16) for page in range(num_pages)]
        last = np.array([num_pages * 16 - 1], np.int32)
        batch = step_batch([Piece(last, last, last, last, np.array(rows, np.int32))])
        assert_close(runner.run(batch), eager.run(batch))
    assert [shapes["pages"][1] for _, shapes in session.runs] == [1, 2, 4, 4, 8, 8, 8, 8, 16]
    assert {profile for profile, _ in session.runs} == {1}


def test_imported_pages_arrive_with_the_next_step_and_only_then(
    runner: TensorRTRunner, session: GraphSession
) -> None:
    kv = stored_kv(1, 20)
    runner.import_pages([7, 3], kv)
    runner.run(decodes(1))
    runner.run(decodes(1))
    assert [shapes["import_pages"] for _, shapes in session.runs] == [(2,), (0,)]
    # Decode steps have no imports: the first one ran as a prefill.
    assert [profile for profile, _ in session.runs] == [0, 1]
    assert torch.equal(runner.export_pages([7, 3], 20), kv)


def test_decode_steps_come_in_few_shapes_and_idle_sequences_write_nothing(
    runner: TensorRTRunner, session: GraphSession, eager: Runner
) -> None:
    before = stored_kv(3, 16)
    for each in (runner, eager):
        each.import_pages([0], before)
        # With what arrives a step runs as a prefill.
        each.run(step_batch([sequence(1, 1)]))
    for number in (3, 5, 7, 8):
        batch = step_batch([sequence(page + 1, 1, page) for page in range(number)])
        assert_close(runner.run(batch), eager.run(batch))
    assert [shapes["logit_rows"] for profile, shapes in session.runs if profile] == [
        (4,),
        (8,),
        (8,),
        (8,),
    ]
    assert torch.equal(runner.export_pages([0], 16), before)
    assert [padded_sequences(n) for n in (1, 2, 3, 8, 9, 24, 33, 49, 64)] == [
        *(1, 2, 4, 8, 16, 24, 48, 64, 64)
    ]


@pytest.fixture
def linking(session: GraphSession, tiny_engine_folder: Callable[[str], Path]) -> TensorRTRunner:
    """A runner whose plan has the profile of short links."""
    limits = PlanLimits(max_step_tokens=256, max_sequences=8, max_import_pages=4)
    return graph_runner(tiny_engine_folder("llama"), "float32", session, NUM_PAGES, limits)


def test_short_steps_are_filled_up_to_a_multiple_of_64_tokens_that_see_and_write_nothing(
    linking: TensorRTRunner, session: GraphSession, eager: Runner
) -> None:
    before = stored_kv(3, 16)
    for each in (linking, eager):
        each.import_pages([0], before)
        # With what arrives a step runs as a prefill.
        each.run(step_batch([sequence(1, 1)]))
    steps = [
        [sequence(page, 3) for page in range(1, 4)],
        [sequence(1, 1, 9), sequence(2, 5, 9), sequence(3, 1, 9)],
        [sequence(page, 16) for page in range(1, 6)],
        # As many sequences, filled up, as are tokens left.
        [sequence(page, 12) for page in range(6, 11)],
    ]
    for step in steps:
        assert_close(linking.run(step_batch(step)), eager.run(step_batch(step)))
    runs = [(n, shapes["input_ids"], shapes["logit_rows"]) for n, shapes in session.runs[1:]]
    assert runs == [
        (LINK, (64,), (4,)),
        (LINK, (64,), (4,)),
        (LINK, (128,), (8,)),
        (LINK, (64,), (8,)),
    ]
    written = linking.export_pages(range(11), 176)
    assert_close(written, eager.export_pages(range(11), 176))
    assert torch.equal(written[:, :, :16], before)


def test_idle_sequences_have_a_token_each_as_far_as_there_are_tokens() -> None:
    batch = step_batch([sequence(page, 2) for page in range(3)])
    filled = with_idle_sequences(batch, num_tokens=8, num_sequences=6)
    assert filled.query_start.tolist() == [0, 2, 4, 6, 7, 8, 8]
    assert filled.slots.tolist()[6:] == [-1, -1]
    assert filled.logit_rows.tolist() == [1, 3, 5, 0, 0, 0]
    assert filled.query_start.dtype == filled.pages.dtype == np.int32
    assert not filled.pages[3:].any()


def test_more_pages_than_a_step_takes_are_imported_all_the_same(runner: TensorRTRunner) -> None:
    many, few = stored_kv(1, 16 * 5), stored_kv(2, 16 * 3)
    runner.import_pages([9, 10, 11], few)
    runner.import_pages([1, 2, 3, 4, 5], many)
    runner.run(decodes(1))
    assert torch.equal(runner.export_pages([1, 2, 3, 4, 5], 80), many)
    assert torch.equal(runner.export_pages([9, 10, 11], 48), few)


def test_a_waiting_page_can_be_read_copied_and_replaced(runner: TensorRTRunner) -> None:
    first, second = stored_kv(1, 16), stored_kv(2, 16)
    runner.import_pages([4], first)
    runner.copy_pages([4], [6])
    assert torch.equal(runner.export_pages([6], 16), first)
    runner.import_pages([4], first)
    runner.import_pages([4], second)
    runner.run(decodes(1))
    assert torch.equal(runner.export_pages([4], 16), second)


class NewTensors(TorchDispatchMode):
    """Which operations made a tensor in memory of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.made_by: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        made = func(*args, **(kwargs or {}))
        places = {address_of(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        if isinstance(made, Tensor) and address_of(made) not in places:
            self.made_by.append(func.overloadpacket.__name__)
        return made


class NoSession:
    """A plan that computes nothing."""

    def run(self, profile: int, inputs: object, outputs: object) -> None:
        pass


def test_a_step_takes_no_memory_but_its_answer_s(
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    runner = graph_runner(tiny_engine_folder("llama"), "float32", NoSession(), NUM_PAGES)
    for batch in (decodes(3), step_batch([sequence(1, 9)])):
        with NewTensors() as new:
            runner.run(batch)
        # The logits, and those of a batch's parts put together.
        assert new.made_by == ["clone", "cat"]


def test_a_step_whose_chunks_drift_is_refused_and_the_next_runs(
    session: GraphSession, runner: TensorRTRunner
) -> None:
    drift = Drift(0, np.arange(2, dtype=np.int32), np.array([[0, 1, 0]], np.int32))
    step = replace(step_batch([sequence(0, 8)]), drifts=(drift,))
    with pytest.raises(
        StepFailed, match="moves no stored keys and values, and 1 chunk of this step"
    ):
        runner.run(step)
    assert session.runs == []
    runner.run(replace(step, drifts=()))
    assert len(session.runs) == 1


def test_a_step_too_large_for_the_plan_is_refused_with_the_numbers(runner: TensorRTRunner) -> None:
    batch = step_batch([sequence(page, 16) for page in range(5)])
    with pytest.raises(InvalidRequest, match="T = 80 is not within 1 to 64"):
        runner.run(batch)


def test_buffers_hold_the_largest_step_of_any_profile(
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    profiles = plan_of(tiny_engine_folder("llama"), "float32").profiles
    buffers = StepBuffers(profiles, torch.device("cpu"))
    sizes = {symbol: size.most for symbol, size in profiles[0].ranges.items()}
    arrays = {
        "input_ids": np.arange(sizes["T"], dtype=np.int32),
        "positions": np.arange(sizes["T"], dtype=np.int32),
        "key_positions": np.arange(sizes["T"], dtype=np.int32),
        "slots": np.arange(sizes["T"], dtype=np.int32),
        "query_start": np.arange(sizes["B"] + 1, dtype=np.int32),
        "pages": np.ones((sizes["B"], sizes["P"], 4), np.int32),
        "logit_rows": np.arange(sizes["B"], dtype=np.int32),
    }
    loaded = buffers.load(arrays, sizes)
    assert all(np.array_equal(loaded[name].numpy(), arrays[name]) for name in arrays)
    assert sizes["T"] == LIMITS.max_step_tokens


def test_page_rows_past_the_batch_are_empty_whatever_was_there(
    tiny_engine_folder: Callable[[str], Path],
) -> None:
    buffers = StepBuffers(plan_of(tiny_engine_folder("llama"), "float32").profiles,
                          torch.device("cpu"))  # fmt: skip
    names = ("input_ids", "positions", "key_positions", "slots", "logit_rows")
    arrays = {name: np.ones(2, np.int32) for name in names}
    arrays |= {"query_start": np.arange(3, dtype=np.int32), "pages": np.ones((2, 8, 4), np.int32)}
    buffers.load(arrays, {"T": 2, "B": 2, "P": 8})
    arrays["pages"] = np.full((2, 3, 4), 5, np.int32)
    pages = buffers.load(arrays, {"T": 2, "B": 2, "P": 4})["pages"]
    assert (pages[:, :3] == 5).all()
    assert (pages[:, 3] == 0).all()
