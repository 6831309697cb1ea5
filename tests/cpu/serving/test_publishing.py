"""Numbers of a process: counted right among threads, and handed on once each time they change."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from legokv import Engine, EngineSettings
from legokv.engine.request import MODES
from legokv.metrics import SECONDS, Family, Histogram, Sample
from legokv.serving import metrics
from legokv.serving.metrics import Publisher

COUNTED = Family("counted_total", "counter", "Things counted")


class Shown:
    """A board that keeps what it was told."""

    def __init__(self) -> None:
        self.calls: list[tuple[Sample, float]] = []

    def show(self, sample: Sample, change: float) -> None:
        self.calls.append((sample, change))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    monkeypatch.setattr(metrics, "PUBLISH_SECONDS", 0.01)
    return Shown()


def eventually(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds()


def values(samples: Iterator[Sample]) -> dict[tuple[str, str], float]:
    """Values by name and last label's value."""
    return {(s.family.name, s.labels[-1][1] if s.labels else ""): s.value for s in samples}


def test_a_bucket_counts_what_is_at_most_its_bound_and_all_below() -> None:
    times = Histogram("t_seconds", "Times")
    for seconds in (0.0, 0.001, 0.0011, 0.1, 60, 61):
        times.observe(seconds)
    found = values(times.samples())
    assert found["t_seconds_bucket", "0.001"] == 2
    assert found["t_seconds_bucket", "0.0025"] == 3
    assert found["t_seconds_bucket", "0.1"] == 4
    assert found["t_seconds_bucket", "60"] == 5
    assert found["t_seconds_bucket", "+Inf"] == found["t_seconds_count", ""] == 6
    assert found["t_seconds_sum", ""] == pytest.approx(121.1021)


def test_a_histogram_loses_nothing_among_threads_and_each_snapshot_agrees_with_itself() -> None:
    times = Histogram("t_seconds", "Times", (("tier", "disk"),))

    def observe(_: int) -> list[Sample]:
        for _ in range(500):
            times.observe(0.25)
        return list(times.samples())

    with ThreadPoolExecutor(8) as threads:
        snapshots = list(threads.map(observe, range(8)))
    for snapshot in (*snapshots, list(times.samples())):
        *buckets, total, count = snapshot
        assert buckets[-1].value == count.value
        assert total.value == 0.25 * count.value
        assert len(buckets) == len(SECONDS) + 1
        assert all(sample.labels[0] == ("tier", "disk") for sample in snapshot)
    assert count.value == 4000


def test_every_series_is_shown_at_once_and_later_only_by_how_much_it_changed(shown: Shown) -> None:
    numbers = {"a": 0, "b": 3}

    def samples() -> Iterator[Sample]:
        for name, number in numbers.items():
            yield Sample(COUNTED, (("of", name),), number)

    publisher = Publisher(samples, shown)
    first = [(s.labels, s.value, change) for s, change in shown.calls]
    assert first == [((("of", "a"),), 0, 0), ((("of", "b"),), 3, 3)]
    numbers["b"] = 7
    assert eventually(lambda: len(shown.calls) == 3)
    publisher.close()
    sample, change = shown.calls[-1]
    assert (sample.labels, sample.value, change) == ((("of", "b"),), 7, 4)


def test_after_close_nothing_is_shown(shown: Shown) -> None:
    ticks = iter(range(10**9))
    publisher = Publisher(lambda: [Sample(COUNTED, (), next(ticks))], shown)
    assert eventually(lambda: len(shown.calls) > 3)
    publisher.close()
    number = len(shown.calls)
    time.sleep(0.05)
    assert len(shown.calls) == number


def test_numbers_that_could_not_be_shown_are_shown_later_and_the_log_says_why(
    shown: Shown, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = iter((1, None, 5))

    def samples() -> list[Sample]:
        number = next(numbers, 5)
        if number is None:
            raise OSError("the database is away")
        return [Sample(COUNTED, (), number)]

    publisher = Publisher(samples, shown)
    assert eventually(lambda: len(shown.calls) == 2)
    publisher.close()
    assert [change for _, change in shown.calls] == [1, 4]
    assert "the database is away" in caplog.text


def test_an_engine_counts_what_it_did_and_starts_at_zero(
    tiny_engine_folder: Callable[[], Path],
) -> None:
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=1024))
    assert set(values(engine.samples()).values()) == {0}
    chunks = [engine.compile(range(10 + n, 50 + n)) for n in (0, 100)]
    list(engine.generate([*chunks, [5, 6, 7]], max_tokens=9))
    engine.prefill([*chunks, [5, 6]], link_tokens=0, mode="spread")
    found = values(engine.samples())
    assert found["legokv_prompt_tokens_total", "recomputed"] == 16
    assert found["legokv_prompt_tokens_total", "cached"] == 64 + 80
    assert found["legokv_prompt_tokens_total", "fresh"] == 3 + 2
    assert found["legokv_generated_tokens_total", ""] == 9
    by_mode = [found["legokv_prompts_total", mode] for mode in MODES]
    assert dict(zip(MODES, by_mode, strict=True)) == {
        "legolink": 1,
        "spread": 1,
        "ranked": 0,
        "guided": 0,
        "guided-ranked": 0,
        "guided-drift": 0,
        "guided-ranked-drift": 0,
        "legolink-0": 0,
        "full": 0,
    }
    assert found["legokv_inter_token_latency_seconds_count", ""] == 8
    assert found["legokv_link_seconds_count", ""] == found["legokv_request_queue_seconds_count", ""]
    assert found["legokv_link_seconds_count", ""] == found["legokv_compile_seconds_count", ""] == 2
    assert found["legokv_pool_pages_used", ""] == 6
    assert found["legokv_active_leases", ""] == found["legokv_requests_running", ""] == 0
