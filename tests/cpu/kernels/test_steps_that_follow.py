"""Decode steps that go on from the step before: the bits of steps begun anew, whatever changed."""

import dataclasses
import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls, StepBefore, StepShape
from legokv.kernels.gpu import AttentionTables
from legokv.kernels.native_library import InstructionSet, NativeLibrary

PAGE_SIZE, NUM_PAGES = 16, 600
NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE = 6, 2, 64
INV_FREQ = 10000.0 ** -(torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE)
DOCUMENT_PAGES = 8
QUESTION_TOKENS = 21
SLOWLY = {InstructionSet.SOFTWARE_TILES, InstructionSet.PORTABLE}
KERNELS = [
    (each, dtype)
    for each in InstructionSet
    for dtype in (torch.float32, torch.bfloat16)
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]
Rows = list[list[int]]


class Answers:
    """Sequences over two shared documents, each in its own order: tables after so many tokens."""

    def __init__(self, num_sequences: int) -> None:
        free = iter(np.random.default_rng(0).permutation(NUM_PAGES).tolist())
        documents = [[next(free) for _ in range(DOCUMENT_PAGES)] for _ in range(2)]
        document_tokens = DOCUMENT_PAGES * PAGE_SIZE
        self.own = [[next(free) for _ in range(40)] for _ in range(num_sequences)]
        self.heads: list[Rows] = []
        for number, own in enumerate(self.own):
            rows = []
            for place in range(2):
                base = place * document_tokens + 1
                pages = documents[(number + place) % 2].copy()
                pages[0] = own.pop()
                rows += [
                    [page, base, base + PAGE_SIZE * n, PAGE_SIZE] for n, page in enumerate(pages)
                ]
            self.heads.append(rows)
        self.first_position = 2 * document_tokens + 1

    def table(self, sequence: int, num_tokens: int) -> Rows:
        """Up to the `num_tokens`th of its answer."""
        rows, left = self.heads[sequence].copy(), QUESTION_TOKENS + num_tokens
        for number, page in enumerate(self.own[sequence]):
            if left <= 0:
                break
            first = self.first_position + number * PAGE_SIZE
            rows.append([page, 0, first, min(left, PAGE_SIZE)])
            left -= PAGE_SIZE
        return rows

    def step(self, counts: dict[int, int]) -> AttentionTables:
        """The step that computes each sequence's token of that number."""
        return tables_of([self.table(number, count) for number, count in counts.items()])


def tables_of(sequences: list[Rows]) -> AttentionTables:
    """A step of the last token of each table."""
    longest, count = max(map(len, sequences)), len(sequences)
    pages = np.zeros((count, longest + 1, 4), np.int32)
    positions, slots = np.zeros((2, count), np.int32)
    for number, rows in enumerate(sequences):
        pages[number, : len(rows)] = rows
        page, _, first, filled = rows[-1]
        positions[number], slots[number] = first + filled - 1, page * PAGE_SIZE + filled - 1
    return AttentionTables(
        positions=torch.from_numpy(positions),
        key_positions=torch.from_numpy(positions.copy()),
        slots=torch.from_numpy(slots),
        query_start=torch.arange(count + 1, dtype=torch.int32),
        pages=torch.from_numpy(pages),
        inv_freq=INV_FREQ,
        scale=HEAD_SIZE**-0.5,
    )


class Calls(NativeCalls):
    """The library, and which of its steps were begun anew and ended, in order."""

    def __init__(self) -> None:
        super().__init__(NativeLibrary(build_native_library(print)))
        self.noted: list[str] = []
        self._note("begin")
        self._note("end")

    @property
    def num_begun(self) -> int:
        return self.noted.count("begin")

    def _note(self, name: str) -> None:
        call = getattr(self.library.functions, f"legokv_cpu_{name}")

        def noted(address: object) -> int | None:
            self.noted.append(name)
            given: int | None = call(address)
            return given

        setattr(self.library.functions, f"legokv_cpu_{name}", noted)


@pytest.fixture
def calls() -> Calls:
    return Calls()


def shape(dtype: torch.dtype) -> StepShape:
    return StepShape(NUM_PAGES, PAGE_SIZE, NUM_HEADS, NUM_KV_HEADS, HEAD_SIZE, dtype)


def pool_of(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = (NUM_PAGES, 2, PAGE_SIZE, NUM_KV_HEADS, HEAD_SIZE)
    return torch.randn(size, generator=generator).to(dtype)


def attended(
    calls: NativeCalls,
    tables: AttentionTables,
    pool: Tensor,
    before: StepBefore | None,
    instruction_set: InstructionSet = InstructionSet.BEST,
    num_threads: int = 2,
) -> Tensor:
    """What the step gives, its tokens written into `pool`."""
    generator = torch.Generator().manual_seed(len(tables.positions))
    q, k, v = (
        torch.randn((len(tables.positions), heads, HEAD_SIZE), generator=generator).to(pool.dtype)
        for heads in (NUM_HEADS, NUM_KV_HEADS, NUM_KV_HEADS)
    )
    with calls.step(
        tables,
        shape(pool.dtype),
        num_threads=num_threads,
        instruction_set=instruction_set,
        before=before,
    ) as step:
        return step.attend(q, k, v, pool)


def check_both(calls: Calls, before: StepBefore, tables: AttentionTables, pool: Tensor) -> bool:
    """The same bits as of a step begun anew, on the pool too; whether it went on from the last."""
    other, num_begun = pool.clone(), calls.num_begun
    out = attended(calls, tables, pool, before)
    went_on = calls.num_begun == num_begun
    assert torch.equal(out, attended(calls, tables, other, None))
    assert torch.equal(pool, other)
    return went_on


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_answers_go_on_over_pages_with_the_bits_of_steps_begun_anew(
    calls, instruction_set, dtype, num_threads
):
    if instruction_set not in calls.instruction_sets():
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    answers, before, pool = Answers(3), StepBefore(), pool_of(dtype)
    num_steps = 14 if instruction_set in SLOWLY else 40
    for number in range(num_steps):
        tables, other = answers.step({0: number + 1, 1: number + 7, 2: number + 12}), pool.clone()
        out = attended(calls, tables, pool, before, instruction_set, num_threads)
        expected = attended(calls, tables, other, None, instruction_set, num_threads)
        assert torch.equal(out, expected), f"step {number}"
        assert torch.equal(pool, other)
    assert calls.num_begun == 1 + num_steps


def test_an_answer_grows_past_the_end_of_a_part(calls):
    answers, before, pool = Answers(1), StepBefore(), pool_of(torch.float32)
    begun_anew = [
        number
        for number in range(470, 540)
        if not check_both(calls, before, answers.step({0: number}), pool)
    ]
    # 512 keys of one base are a part: the question's tokens and the answer's.
    assert begun_anew == [470, 513 - QUESTION_TOKENS]


def rows_changed(change: Callable[[Rows], None]) -> Callable[[Answers], AttentionTables]:
    def changed(answers: Answers) -> AttentionTables:
        rows = [answers.table(number, 6) for number in range(3)]
        rows = [[row.copy() for row in table] for table in rows]
        change(rows[1])
        return tables_of(rows)

    return changed


def another_page(rows: Rows) -> None:
    rows[5][0] = (rows[5][0] + 1) % NUM_PAGES


def another_base(rows: Rows) -> None:
    for row in rows[DOCUMENT_PAGES : 2 * DOCUMENT_PAGES]:
        row[1] += 3


def another_last_page(rows: Rows) -> None:
    rows[-1][0] = (rows[-1][0] + 1) % NUM_PAGES


def fewer_slots_in_the_middle(rows: Rows) -> None:
    rows[DOCUMENT_PAGES - 1][3] -= 1


def a_page_less(rows: Rows) -> None:
    del rows[3]


def a_chunk_behind(rows: Rows) -> None:
    page, _, first, filled = rows[-1]
    rows[-1][3] = PAGE_SIZE
    rows.append([(page + 1) % NUM_PAGES, first + PAGE_SIZE, first + PAGE_SIZE, filled])


def last_page_over_another_position(rows: Rows) -> None:
    rows[-1][2] += 1


CHANGES: dict[str, Callable[[Answers], AttentionTables]] = {
    change.__name__: rows_changed(change)
    for change in (
        another_page,
        another_base,
        another_last_page,
        fewer_slots_in_the_middle,
        a_page_less,
        a_chunk_behind,
        last_page_over_another_position,
    )
} | {
    "an_answer_ends": lambda answers: answers.step({0: 6, 2: 6}),
    "two_change_places": lambda answers: answers.step({1: 6, 0: 6, 2: 6}),
    "another_in_its_place": lambda answers: answers.step({0: 6, 3: 6, 2: 6}),
    "one_comes": lambda answers: answers.step({0: 6, 1: 6, 2: 6, 3: 1}),
    "one_goes_back": lambda answers: answers.step({0: 6, 1: 4, 2: 6}),
    "another_rotation": lambda answers: dataclasses.replace(
        answers.step({0: 6, 1: 6, 2: 6}), inv_freq=INV_FREQ * 0.5
    ),
    "another_scale": lambda answers: dataclasses.replace(
        answers.step({0: 6, 1: 6, 2: 6}), scale=0.5
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_else_changed_is_seen(calls, change):
    answers, before, pool = Answers(4), StepBefore(), pool_of(torch.float32)
    check_both(calls, before, answers.step({0: 5, 1: 5, 2: 5}), pool)
    assert not check_both(calls, before, CHANGES[change](answers), pool)


def test_another_type_or_build_or_number_of_threads_is_seen(calls):
    answers, before = Answers(2), StepBefore()
    pool, halves = pool_of(torch.float32), pool_of(torch.bfloat16)
    portable = InstructionSet.PORTABLE
    kinds = [
        (pool, calls.best(torch.float32), 1),
        (halves, calls.best(torch.bfloat16), 1),
        (halves, portable, 1),
        (halves, portable, 2),
        (pool, portable, 2),
    ]
    for number, (kind, instruction_set, num_threads) in enumerate(kinds):
        tables, other = answers.step({0: 5 + number, 1: 5 + number}), kind.clone()
        out = attended(calls, tables, kind, before, instruction_set, num_threads)
        assert calls.num_begun == 2 * number + 1
        expected = attended(calls, tables, other, None, instruction_set, num_threads)
        assert torch.equal(out, expected)


def test_a_key_that_is_not_seen_yet_is_seen_later(calls):
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    ahead = answers.step({0: 5, 1: 5})
    ahead.positions.sub_(3)
    check_both(calls, before, ahead, pool)
    check_both(calls, before, answers.step({0: 6, 1: 6}), pool)


def test_a_last_page_that_two_share_grows_for_both(calls):
    answers, before, pool = Answers(1), StepBefore(), pool_of(torch.float32)
    for number in (5, 6):
        both = tables_of([answers.table(0, number)] * 2)
        both.slots[1] = -1  # one of them writes
        assert not check_both(calls, before, both, pool)


def test_a_longer_neighbour_moves_no_table(calls):
    """The step's tables get a row more, and theirs an empty one."""
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    went_on = [
        check_both(calls, before, answers.step({0: number, 1: number + 40}), pool)
        for number in range(1, 20)
    ]
    assert went_on == [False] + [True] * 18


def test_a_step_of_more_tokens_is_not_kept(calls):
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    two = answers.step({0: 5, 1: 5})
    prefill = dataclasses.replace(
        two, query_start=torch.tensor([0, 2], dtype=torch.int32), pages=two.pages[:1]
    )
    attended(calls, prefill, pool, before)
    assert before.take(calls.library) is None


def test_a_step_that_failed_is_not_kept(calls):
    answers, before = Answers(2), StepBefore()
    with (
        pytest.raises(ZeroDivisionError),
        calls.step(answers.step({0: 5, 1: 5}), shape(torch.float32), num_threads=1, before=before),
    ):
        raise ZeroDivisionError
    assert before.take(calls.library) is None


def test_a_step_that_cannot_go_on_is_freed_before_the_next_takes_memory(calls):
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    for sequences in ({0: 5}, {0: 6, 1: 6}):
        attended(calls, answers.step(sequences), pool, before)
    assert calls.noted == ["begin", "end", "begin"]


def test_another_librarys_step_is_not_taken(calls):
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    check_both(calls, before, answers.step({0: 5, 1: 5}), pool)
    assert not check_both(Calls(), before, answers.step({0: 6, 1: 6}), pool)


def test_two_who_compute_at_once_never_have_one_step(calls):
    """One holds a step while the other begins: it is not in two hands."""
    answers, before, pool = Answers(2), StepBefore(), pool_of(torch.float32)
    check_both(calls, before, answers.step({0: 5, 1: 5}), pool)
    tables, own = answers.step({0: 6, 1: 6}), []
    meet = threading.Barrier(2, timeout=60)

    def compute() -> None:
        with calls.step(tables, shape(torch.float32), num_threads=2, before=before) as step:
            own.append(step)
            meet.wait()

    threads = [threading.Thread(target=compute) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(step) for step in own}) == 2
    assert check_both(calls, before, answers.step({0: 7, 1: 7}), pool)
