"""Jobs nobody waits for: in order, a few at a time, none harmed by another."""

import threading

from legokv.serving.background import Background

WAIT_SECONDS = 10


def test_jobs_run_in_order_and_one_that_fails_harms_no_other() -> None:
    run = Background(1)
    seen: list[int] = []
    over = threading.Event()

    def fail() -> None:
        raise ValueError("a job's own fault")

    run(lambda: seen.append(1))
    run(fail)
    run(lambda: seen.append(2))
    run(over.set)
    assert over.wait(WAIT_SECONDS)
    assert seen == [1, 2]


def test_no_more_jobs_run_at_a_time_than_there_are_threads() -> None:
    run = Background(3)
    lock = threading.Lock()
    meeting = threading.Barrier(3)
    over = threading.Event()
    running, most, ended = 0, 0, 0

    def job() -> None:
        nonlocal running, most, ended
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(WAIT_SECONDS)  # passes only if three run at once
        with lock:
            running -= 1
            ended += 1
            if ended == 30:
                over.set()

    before = threading.active_count()
    for _ in range(30):
        run(job)
    assert threading.active_count() == before
    assert over.wait(WAIT_SECONDS)
    assert most == 3
