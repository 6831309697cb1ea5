"""A lost server is started again at once, then ever later, and not for ever."""

from legokv.serving.triton.restarts import LOSSES_SECONDS, MAX_LOSSES, RESTART_TRIES, Restarts


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_server_that_never_was_ready_is_not_tried_again() -> None:
    assert Restarts(Clock()).seconds_to_wait(ready=False) is None


def test_losses_that_follow_each_other_are_made_good_later_and_later_and_then_no_more() -> None:
    restarts = Restarts(Clock())
    waits = []
    for _ in range(MAX_LOSSES + 1):
        restarts.was_ready()
        waits.append(restarts.seconds_to_wait(ready=True))
    assert waits == [0, 1, 2, 4, 8, 16, 32, 60, 60, 60, None]


def test_losses_far_apart_are_each_the_first() -> None:
    clock = Clock()
    restarts = Restarts(clock)
    for _ in range(3 * MAX_LOSSES):
        restarts.was_ready()
        assert restarts.seconds_to_wait(ready=True) == 0
        clock.now += LOSSES_SECONDS + 1


def test_failed_starts_in_a_row_are_few() -> None:
    restarts = Restarts(Clock())
    restarts.was_ready()
    restarts.seconds_to_wait(ready=True)
    waits = [restarts.seconds_to_wait(ready=False) for _ in range(RESTART_TRIES + 1)]
    assert waits == [1, 2, 4, None]
