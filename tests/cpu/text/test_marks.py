"""Marks are found in what a template wrote, however many ids a conversation has."""

import re

from legokv.text.marks import Marks, Slot

COUNT = 4000


def widest(pattern: str) -> int:
    """The most ways to go on that a place of the pattern has, of one without sets of letters."""
    ways, open_groups = 1, [1]
    letters = iter(pattern)
    for letter in letters:
        if letter == "\\":
            next(letters)
        elif letter == "(":
            open_groups.append(1)
        elif letter == ")":
            open_groups.pop()
        elif letter == "|":
            open_groups[-1] += 1
            ways = max(ways, open_groups[-1])
    return ways


def test_ids_are_found_where_a_template_wrote_them_and_each_place_has_few_ways_to_go_on() -> None:
    marks = Marks("stem")
    ids = [marks.of_id(Slot("word", f"call_{number:012}", 1)) for number in range(COUNT)]
    text = marks.of(Slot("text", "Who?", 1))
    pieces = list(marks.split("".join(f"<{mark}>" for mark in [*ids, text])))
    assert [piece for piece in pieces if not isinstance(piece, str)] == [
        (number, 0) for number in range(COUNT + 1)
    ]
    assert {piece for piece in pieces if isinstance(piece, str)} == {"<", "><", ">"}
    # 32 letters an id begins with, and the texts: the work for a letter does not grow with the ids.
    assert widest(marks._pattern.pattern) < 50 < COUNT == widest("|".join(ids))
    assert re.fullmatch(marks._pattern, ids[7])
