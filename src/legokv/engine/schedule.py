"""How one step's token budget is divided among those who want to compute. Pure arithmetic."""

from collections.abc import Sequence


def share(wanted: Sequence[int], budget: int) -> list[int]:
    """Tokens each of the waiting sequences may compute in this step, at most what it wants.

    `wanted`, each 1 or more, is in the order of the sequences' last turns, the longest ago first.
    Everyone has an equal share; what short ones leave goes to the longer. So a decode step or a
    short question never waits for a long compile, and a long compile gets all that is left. With
    no more budget than sequences each gets one token, and whoever gets none is first next time:
    nobody waits more than ceil(sequences / budget) steps for a turn.
    """
    if len(wanted) >= budget:
        return [1 if place < budget else 0 for place in range(len(wanted))]
    given = [0] * len(wanted)
    left = budget
    order = sorted(range(len(wanted)), key=lambda number: wanted[number])
    for place, number in enumerate(order):
        equal = -(-left // (len(order) - place))
        given[number] = min(wanted[number], equal, left)
        left -= given[number]
    return given
