"""Dropped chunks are remembered for a while, and not without end."""

from legokv.engine.dropped_keys import DROPPED_SECONDS, MAX_DROPPED_KEYS, DroppedKeys


def test_a_key_is_remembered_until_it_is_wanted_again_or_an_hour_has_passed():
    now = [0.0]
    dropped = DroppedKeys(lambda: now[0])
    dropped.add("a")
    dropped.add("b")
    dropped.discard("b")
    dropped.discard("never was")
    assert [key in dropped for key in "abc"] == [True, False, False]
    now[0] = DROPPED_SECONDS / 2
    dropped.add("c")
    dropped.add("a")
    now[0] = DROPPED_SECONDS * 1.2
    assert [key in dropped for key in "abc"] == [True, False, True]
    now[0] = DROPPED_SECONDS * 2
    assert [key in dropped for key in "abc"] == [False, False, False]


def test_no_more_than_so_many_are_remembered_the_newest_ones():
    dropped = DroppedKeys()
    for number in range(MAX_DROPPED_KEYS + 10):
        dropped.add(str(number))
    assert len(dropped._ends) == MAX_DROPPED_KEYS
    assert "9" not in dropped
    assert "10" in dropped
