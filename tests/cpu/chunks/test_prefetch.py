"""Chunks of a request that waits: fetched meanwhile, leased no longer than they must be."""

import time

import torch
from texts import random_ids
from tier_engines import (  # noqa: F401 - fixtures
    answer,
    open_engine_fixture,
    tier,
)

from legokv.engine.request import GenerateRequest


def test_a_waiting_request_s_chunks_are_fetched_before_it_is_admitted(open_engine):
    ids = [random_ids(n) for n in range(4)]
    first = open_engine()
    expected = answer(first, [first.compile(i) for i in ids]).logits
    second = open_engine()
    job = second.submit(GenerateRequest([*map(second.chunk, ids), [5, 6]], 0))
    fetching = job.prefetch
    fetching.wait()
    assert (tier(second, "disk").hits, tier(second, "host").num_chunks) == (4, 4)
    assert tier(second, "disk").num_leases == tier(second, "host").num_leases == 4
    (result,) = second.results(job)
    assert torch.equal(result.logits, expected)
    assert (result.usage.compiled_tokens, tier(second, "disk").hits) == (0, 4)
    wait_until(lambda: tier(second, "disk").num_leases == tier(second, "host").num_leases == 0)
    assert fetching.done


def test_a_cancelled_waiting_request_leases_nothing(open_engine):
    first = open_engine()
    first.compile(random_ids(1))
    second = open_engine()
    job = second.submit(GenerateRequest([second.chunk(random_ids(1)), [5, 6]], 4))
    fetching = job.prefetch
    fetching.wait()
    second.cancel(job)
    second.step()
    wait_until(lambda: tier(second, "disk").num_leases == 0)
    assert fetching.done


def test_an_admitted_request_s_leases_on_stored_chunks_end_before_its_answer(open_engine):
    first = open_engine()
    first.compile(random_ids(1))
    second = open_engine()
    job = second.submit(GenerateRequest([second.chunk(random_ids(1)), [5, 6]], 40))
    fetching = job.prefetch
    second.step()
    wait_until(lambda: tier(second, "disk").num_leases == 0)
    assert fetching.done
    assert second.cache.num_leases == 1
    second.cancel(job)


def wait_until(holds, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"still not so after {seconds} s"
        time.sleep(0.01)


def test_running_answers_go_on_while_a_request_s_chunks_are_fetched(open_engine):
    first = open_engine()
    chunk = first.compile(random_ids(1))
    second = open_engine()
    running = second.submit(GenerateRequest([[5, 6]], 30))
    second.step()
    waiting = second.submit(GenerateRequest([chunk, [7]], 2))
    alone = [t.id for t in open_engine(cache_dir=None).generate([[5, 6]], max_tokens=30)]
    assert [e.id for e in second.results(running) if hasattr(e, "id")] == alone
    assert sum(hasattr(e, "id") for e in second.results(waiting)) == 2


def test_a_fetch_that_fails_is_in_the_log_and_the_chunk_is_compiled(
    open_engine, monkeypatch, caplog
):
    first = open_engine()
    expected = answer(first, [first.compile(random_ids(1))]).logits
    second = open_engine()
    error = RuntimeError("a fault of the tier")
    monkeypatch.setattr(second.tiers, "fetch", lambda chunk: raising(error))
    job = second.submit(GenerateRequest([second.chunk(random_ids(1)), [5, 6]], 0))
    (result,) = second.results(job)
    assert torch.equal(result.logits, expected)
    assert error in [record.exc_info[1] for record in caplog.records if record.exc_info]
    assert "chunks were not fetched ahead" in caplog.text


def raising(error):
    raise error
