"""One step as a value: who has how many tokens of it, and what becomes of it."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from legokv.engine.jobs import Job
from legokv.engine.schedule import finish_step, plan_step, run_step, share
from legokv.errors import StepFailed
from legokv.link.drift import Drift
from legokv.step.sequence import TokenSequence


@pytest.mark.parametrize(
    ("wanted", "budget", "given"),
    [
        ([], 8, []),
        ([3], 8, [3]),
        ([20], 8, [8]),
        ([1, 1, 1], 8, [1, 1, 1]),
        ([100, 1], 8, [7, 1]),
        ([100, 100], 8, [4, 4]),
        ([100, 3, 100], 9, [3, 3, 3]),
        ([5, 5, 5], 2, [1, 1, 0]),
        ([4096, 1, 1], 2, [1, 1, 0]),
    ],
)
def test_a_budget_is_shared_equally_and_what_short_ones_leave_goes_to_longer(wanted, budget, given):
    assert share(wanted, budget) == given


def test_no_budget_is_wasted_or_exceeded_and_nobody_gets_more_than_wanted():
    dice = random.Random(5)
    for _ in range(500):
        wanted = [dice.randint(1, 300) for _ in range(dice.randint(1, 20))]
        budget = dice.randint(1, 600)
        given = share(wanted, budget)
        assert sum(given) == min(budget, sum(wanted))
        assert all(0 <= g <= w for g, w in zip(given, wanted, strict=True))


def test_with_more_sequences_than_budget_a_long_prompt_has_its_turn_among_decodes():
    last_step = dict.fromkeys(range(7), 0)
    turns = dict.fromkeys(range(7), 0)
    for step in range(1, 22):
        line = sorted(last_step, key=last_step.__getitem__)
        for number, tokens in zip(
            line, share([4096 if n == 6 else 1 for n in line], 3), strict=True
        ):
            assert tokens in (0, 1)
            if tokens:
                assert step - last_step[number] <= 3
                last_step[number] = step
                turns[number] += 1
    assert min(turns.values()) >= 7


def test_a_decode_step_is_never_left_out_while_there_is_budget_for_all():
    assert share([4096, 1, 4096, 1], 64)[1::2] == [1, 1]


def sequence(num_tokens, last_step=0, first_page=0):
    ids = np.arange(num_tokens, dtype=np.int32)
    table = np.array([[first_page, 0, 0, 16]], np.int32)
    return TokenSequence(ids, ids, ids, ids + 16 * first_page, table, last_step=last_step)


def job(*sequences):
    made = Job((), 0)
    made.sequences = sequences
    return made


def test_a_planned_step_gives_the_first_turn_to_who_waited_longest():
    late, early = sequence(5, last_step=7), sequence(5, last_step=2, first_page=1)
    first, second = job(late), job(early)
    step = plan_step([first, second], max_tokens=7)
    assert [turn.job for turn in step.turns] == [second, first]
    assert [turn.num_tokens for turn in step.turns] == [4, 3]
    assert step.batch.input_ids.tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert step.batch.slots.tolist() == [16, 17, 18, 19, 0, 1, 2]
    assert (late.num_left, early.num_left) == (5, 5)


def drifting(num_tokens, first_row, num_rows, first_page=0):
    made = sequence(num_tokens, first_page=first_page)
    made.drifts = (Drift(first_row, np.zeros(num_rows, np.int32), np.zeros((1, 3), np.int32)),)
    return made


@pytest.mark.parametrize(
    ("room", "given"), [(1, 1), (2, 2), (3, 2), (5, 2), (6, 6), (7, 7), (9, 9)]
)
def test_a_step_never_cuts_the_tokens_of_a_document_that_drifts(room, given):
    assert drifting(9, 2, 4).fitting(room) == given


def test_where_a_drifting_documents_tokens_come_next_all_of_them_do():
    made = drifting(9, 2, 4)
    made.advance(2, 1)
    assert [made.fitting(room) for room in (1, 3, 4, 5, 7)] == [4, 4, 4, 5, 7]
    piece = made.next(4)
    assert [(drift.first_row, drift.num_rows) for drift in piece.drifts] == [(0, 4)]
    made.advance(4, 2)
    assert made.next(3).drifts == ()


def test_one_sequence_alone_has_more_than_its_share_of_a_step():
    first, second = drifting(20, 0, 20), drifting(20, 0, 20, first_page=1)
    plain = sequence(3, first_page=2)
    step = plan_step([job(first), job(second), job(plain)], max_tokens=9)
    assert [(turn.sequence, turn.num_tokens) for turn in step.turns] == [(first, 20), (plain, 3)]
    finish_step(step, 1)
    step = plan_step([job(second)], max_tokens=9)
    assert [turn.num_tokens for turn in step.turns] == [20]


@dataclass
class Rows:
    """A runner that gives these rows of logits, or raises them."""

    rows: object

    def run(self, batch):
        if isinstance(self.rows, Exception):
            raise self.rows
        return self.rows


def test_a_step_that_runs_gives_a_row_a_turn_and_any_error_is_a_failed_step():
    step = plan_step([job(sequence(3)), job(sequence(2, first_page=1))], max_tokens=8)
    logits = torch.arange(8.0).view(2, 4)
    assert run_step(Rows(logits), step) is logits
    with pytest.raises(StepFailed, match="a step failed: 2 rows of logits are due, 1 came"):
        run_step(Rows(logits[:1]), step)
    error = KeyError("lost")
    with pytest.raises(StepFailed, match="a step failed: KeyError: 'lost'") as failed:
        run_step(Rows(error), step)
    assert failed.value.__cause__ is error


def test_a_finished_step_moves_its_sequences_on_and_hands_out_those_that_ended():
    whole, part = sequence(2), sequence(6, first_page=1)
    step = plan_step([job(part), job(whole)], max_tokens=6)
    ((turn, row),) = finish_step(step, number=9)
    assert turn.sequence is whole
    assert step.turns[row].sequence is whole
    assert (whole.num_left, part.num_left) == (0, 2)
    assert (whole.last_step, part.last_step) == (9, 9)
