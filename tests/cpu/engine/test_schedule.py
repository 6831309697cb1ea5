import random

import pytest

from legokv.engine.schedule import share


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
