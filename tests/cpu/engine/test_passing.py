"""A giant that waits for pages: the small pass it, and it is not starved, both in numbers."""

from dataclasses import replace

import pytest
from fake_runner import PAGE_SIZE, Fault, World, answer_to, chunk, tokens

from legokv.engine.schedule import PASSING_MAX_TOKENS, PASSING_POOL_SHARE

NUM_PAGES = 64
POOL_TOKENS = NUM_PAGES * PAGE_SIZE
# So many tokens of prompt and answer together a job that passes may have at most.
SMALL = POOL_TOKENS // PASSING_POOL_SHARE


def begun(job):
    return bool(job.usage.time_to_first_token_seconds)


def crowded(*, long_tokens=150, giant_tokens=150, **given):
    """A world whose pool one answer fills by half, and a giant that waits for that half."""
    world = World(num_pages=NUM_PAGES, max_step_tokens=512, **given)
    running = world.ask([1, 2, 3], max_tokens=long_tokens)
    world.executor.step()
    return world, running, world.ask([9] * giant_tokens, max_tokens=2)


def test_the_small_behind_a_waiting_giant_begin_in_the_next_step():
    world, running, giant = crowded()
    small = [world.ask([20 + number], max_tokens=4) for number in range(3)]
    world.executor.step()
    assert [begun(job) for job in (*small, giant)] == [True, True, True, False]
    world.finish()
    assert [tokens(job) for job in small] == [answer_to([20 + n], 4) for n in range(3)]
    assert tokens(giant) == answer_to([9] * 150, 2)
    assert tokens(running) == answer_to([1, 2, 3], 150)


@pytest.mark.parametrize("with_chunks", [False, True])
def test_however_many_small_ones_come_the_giant_begins_once_those_under_way_end(with_chunks):
    """It waits for the answer that came before it, then at most as long as one small answer."""
    world, running, giant = crowded(long_tokens=100, giant_tokens=200)
    steps = small_steps = 0
    while not begun(giant):
        number = 100 + steps
        segments = [chunk(number, 4), [5]] if with_chunks else [[5, number % 90]]
        world.ask(*segments, max_tokens=10)
        world.executor.step()
        steps += 1
        small_steps += begun(running) and running.usage.generated_tokens == 100
        assert steps < 200
    # A chunk's compile, its link, ten tokens, and the giant's own prompt.
    assert small_steps <= 10 + 3
    assert 100 <= steps <= 100 + 13


def test_a_giant_waits_for_what_its_chunk_is_compiled_behind_too_and_small_ones_pass_till_then():
    world, running, _ = crowded(long_tokens=100, giant_tokens=1)
    world.finish()
    running = world.ask([1, 2, 3], max_tokens=150)
    world.executor.step()
    # Its own chunk would fit beside the answer under way, with what stands before it it does not.
    giant = world.ask([5, 6], replace(chunk(3), behind=chunk(2, 150)), [7], max_tokens=2)
    small = world.ask([20], max_tokens=4)
    for _ in range(3):
        world.executor.step()
    assert (begun(small), begun(giant), begun(running)) == (True, False, True)
    world.finish()
    assert len(tokens(giant)) == 2


def test_those_who_pass_take_nothing_that_the_giant_could_have():
    world, running, giant = crowded(long_tokens=20, giant_tokens=240)
    passing = world.ask([5], max_tokens=SMALL)
    world.executor.step()
    assert begun(passing)
    for _ in range(25):
        world.executor.step()
    # The long answer is over: the giant waits for the one that passed, and nobody passes now.
    assert running.usage.generated_tokens == 20
    late = world.ask([6], max_tokens=2)
    world.executor.step()
    assert not begun(late)
    assert not begun(giant)
    world.finish()
    assert tokens(giant) == answer_to([9] * 240, 2)
    assert tokens(late) == answer_to([6], 2)


@pytest.mark.parametrize(
    ("num_tokens", "max_tokens", "passes"),
    [(SMALL - 3, 4, True), (SMALL - 2, 4, False), (1, SMALL, True), (1, SMALL + 1, False)],
)
def test_only_what_needs_an_eighth_of_the_pool_passes(num_tokens, max_tokens, passes):
    world, _, _ = crowded()
    other = world.ask([5] * num_tokens, max_tokens=max_tokens)
    world.executor.step()
    assert begun(other) == passes


def test_an_answer_of_many_tokens_does_not_pass_however_large_the_pool_is():
    world = World(num_pages=8000, max_step_tokens=4096)
    world.ask([1, 2, 3], max_tokens=16000)
    world.executor.step()
    world.ask([9] * 20000, max_tokens=2)
    short, long = (world.ask([5], max_tokens=PASSING_MAX_TOKENS + more) for more in (0, 1))
    world.executor.step()
    assert (begun(short), begun(long)) == (True, False)


def test_the_first_small_one_that_does_not_fit_holds_back_the_rest():
    world, _, _ = crowded(long_tokens=230)
    # 58 of 64 pages are taken; 8 are an eighth.
    first, second = world.ask([5] * 25, max_tokens=4), world.ask([6], max_tokens=4)
    world.executor.step()
    assert not begun(first)
    assert not begun(second)
    world.finish()
    assert tokens(first) == answer_to([5] * 25, 4)
    assert tokens(second) == answer_to([6], 4)


def test_a_document_is_compiled_past_a_waiting_giant():
    world, _, giant = crowded(disk_bytes=10_000)
    compiling = world.compile(chunk(1))
    for _ in range(3):
        world.executor.step()
    assert world.disk.has("key 1")
    assert not begun(giant)
    assert not compiling.queue.empty()


def test_one_that_passes_and_fails_ends_alone_and_the_giant_is_answered():
    world, running, giant = crowded()
    world.runner.faults.append(Fault("copy_pages", MemoryError("none left")))
    chunked = world.ask([5], chunk(1), [7], max_tokens=2)
    world.finish()
    with pytest.raises(Exception, match="none left"):
        tokens(chunked)
    assert tokens(giant) == answer_to([9] * 150, 2)
    assert tokens(running) == answer_to([1, 2, 3], 150)
    assert world.held == (0, 0, 0, 0)


def test_a_cancelled_giant_lets_all_pass():
    world, _, giant = crowded()
    behind = world.ask([5] * 60, max_tokens=4)
    world.executor.step()
    assert not begun(behind)
    giant.cancelled = True
    world.executor.step()
    assert begun(behind)
