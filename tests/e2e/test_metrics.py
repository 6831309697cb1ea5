"""The real server's metrics port: every name is there from the start, and its numbers are true."""

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from scrape import Scrape, at_rest, scrape, settled
from server import RunningServer, replies, serving
from server_texts import TEXTS

from legokv.serving.error_codes import HTTP_STATUS

BY_SCORES = ("ranked", "guided", "guided-ranked", "guided-drift", "guided-ranked-drift")
TIERS = ("pool", "host", "disk")
HISTOGRAMS = (
    "legokv_time_to_first_token_seconds",
    "legokv_inter_token_latency_seconds",
    "legokv_request_queue_seconds",
    "legokv_compile_seconds",
    "legokv_link_seconds",
)
PLAIN = (
    "legokv_requests_running",
    "legokv_requests_waiting",
    "legokv_pool_pages_used",
    "legokv_active_leases",
    "legokv_generated_tokens_total",
)
LABELLED = {
    "legokv_cache_bytes": {"tier": TIERS},
    "legokv_prompt_tokens_total": {"source": ("cached", "recomputed", "fresh")},
    "legokv_prompts_total": {"mode": ("legolink", "spread", *BY_SCORES, "legolink-0", "full")},
    "legokv_prompts_by_head_total": {"head": ("own", "other")},
    "legokv_chunk_lookups_total": {"tier": TIERS, "result": ("hit", "miss")},
    "legokv_evictions_total": {
        "tier": TIERS,
        "reason": ("budget", "quota", "dropped", "damaged"),
    },
    "legokv_failed_reads_total": {
        "reason": (
            "io",
            "length",
            "header",
            "identity",
            "checksum",
            "layout",
            "not_finite",
            "unknown",
        )
    },
    "legokv_failed_steps_total": {"reason": ("runner", "engine")},
    "legokv_refused_requests_total": {"code": tuple(HTTP_STATUS)},
    "legokv_kv_load_seconds_count": {"tier": ("host", "disk")},
    "legokv_kv_load_seconds_sum": {"tier": ("host", "disk")},
}
GAUGES = (*PLAIN[:4],)
QUESTION = "Who keeps the oldest lighthouse?"


@pytest.fixture(scope="module")
def fresh(engine_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """A server of this file's own, since a test counts what it was asked."""
    folder = tmp_path_factory.mktemp("cache")
    with serving(engine_folder, folder, max_chunk_tokens=64, pool_tokens=4096) as one:
        yield one


def test_a_fresh_server_shows_every_name_with_its_labels_and_zeros(fresh: RunningServer) -> None:
    shown = scrape(fresh)
    for name in (*PLAIN, *(f"{name}_{part}" for name in HISTOGRAMS for part in ("count", "sum"))):
        assert shown(name) == 0, name
    for name, labels in LABELLED.items():
        series = shown.series(name)
        assert {key: {one[key] for one in series} for key in labels} == {
            key: set(values) for key, values in labels.items()
        }, name
        assert all(shown(name, **one) == 0 for one in series), name
    for name in (*HISTOGRAMS, "legokv_kv_load_seconds"):
        assert {"0.001", "1", "60", "+Inf"} < {one["le"] for one in shown.series(f"{name}_bucket")}


def test_counters_agree_with_what_the_answers_said(fresh: RunningServer) -> None:
    before = at_rest(fresh)
    ids = fresh.register(*TEXTS, rank=True)
    asked = (
        {"document_ids": ids, "max_tokens": 7},
        {"document_ids": ids[::-1], "max_tokens": 5, "link_tokens": 4},
        {"document_ids": ids[:2], "max_tokens": 3, "mode": "full"},
        {"document_ids": ids, "max_tokens": 2, "mode": "spread", "recompute_percent": 10.0},
        {"document_ids": ids, "max_tokens": 2, "mode": "guided", "recompute_percent": 5.0},
        {"document_ids": ids[:1], "max_tokens": 2, "mode": "ranked", "link_tokens": 2},
        {"max_tokens": 1},
    )
    said = [fresh.ask(text_input=QUESTION, **fields) for fields in asked]
    said.append(fresh.stream(text_input=QUESTION, document_ids=ids[:1], max_tokens=9)[-1])
    grown = at_rest(fresh).since(before)
    for source in ("cached", "recomputed", "fresh"):
        counted = grown("legokv_prompt_tokens_total", source=source)
        assert counted == sum(reply[f"{source}_tokens"] for reply in said) > 0
    assert grown("legokv_generated_tokens_total") == sum(r["generated_tokens"] for r in said)
    modes = {"legolink": 4, "spread": 1, "ranked": 1, "guided": 1, "full": 1, "legolink-0": 0}
    assert {mode: grown("legokv_prompts_total", mode=mode) for mode in modes} == modes
    heads = Counter(reply["head"] for reply in said if reply["documents_linked"])
    heads["own"] += 1  # what is recomputed in full is linked behind nothing
    assert {head: grown("legokv_prompts_by_head_total", head=head) for head in heads} == heads


def test_histograms_agree_with_the_answers_in_number_and_sum(fresh: RunningServer) -> None:
    ids = fresh.register(*TEXTS[:2])
    before = at_rest(fresh)
    said = [fresh.ask(text_input=QUESTION, document_ids=ids, max_tokens=n) for n in (1, 4, 16)]
    grown = at_rest(fresh).since(before)
    for name, field in (
        ("legokv_time_to_first_token_seconds", "time_to_first_token_seconds"),
        ("legokv_request_queue_seconds", "queue_seconds"),
        ("legokv_link_seconds", "link_seconds"),
    ):
        assert grown(f"{name}_count") == grown(f"{name}_bucket", le="+Inf") == 3
        assert grown(f"{name}_sum") == pytest.approx(sum(reply[field] for reply in said), abs=1e-6)
    assert grown("legokv_inter_token_latency_seconds_count") == 0 + 3 + 15
    between = sum(r["total_seconds"] - r["engine_time_to_first_token_seconds"] for r in said)
    assert 0 < grown("legokv_inter_token_latency_seconds_sum") <= between
    buckets = [
        (float(one["le"]), grown("legokv_link_seconds_bucket", **one))
        for one in grown.series("legokv_link_seconds_bucket")
    ]
    counts = [count for _, count in sorted(buckets)]
    assert counts == sorted(counts)
    for bound, count in buckets:
        assert count == sum(reply["link_seconds"] <= bound for reply in said)


def test_a_chunk_is_counted_where_it_was_looked_for_compiled_read_and_left(
    engine_folder: Path, tmp_path: Path
) -> None:
    # The prompt's head is a chunk too.
    num_chunks = len(TEXTS) + 1
    with serving(engine_folder, tmp_path, max_chunk_tokens=4096) as first:
        ids = first.register(*TEXTS)
        first.ask(text_input=QUESTION, document_ids=ids, max_tokens=1)
        now = at_rest(first)
    assert now("legokv_compile_seconds_count") == num_chunks
    assert now("legokv_compile_seconds_sum") > 0
    assert lookups(now, "pool") == (len(TEXTS), num_chunks)
    assert lookups(now, "disk") == (0, num_chunks)
    files = list(tmp_path.rglob("*.safetensors"))
    assert now("legokv_cache_bytes", tier="disk") == sum(file.stat().st_size for file in files)
    damage(files[0])
    with serving(engine_folder, tmp_path, max_chunk_tokens=4096) as second:
        second.ask(text_input=QUESTION, document_ids=ids, max_tokens=1)
        second.document("delete", id=ids[0])
        now = at_rest(second)
    assert now("legokv_failed_reads_total", reason="checksum") == 1
    assert now("legokv_compile_seconds_count") == 1
    assert now("legokv_kv_load_seconds_count", tier="disk") == num_chunks - 1
    assert 0 < now("legokv_kv_load_seconds_sum", tier="disk") < 60
    assert lookups(now, "disk")[0] == num_chunks - 1
    for reason, number in (("damaged", 1), ("dropped", 1), ("budget", 0), ("quota", 0)):
        assert now("legokv_evictions_total", tier="disk", reason=reason) == number


def lookups(now: Scrape, tier: str) -> tuple[float, float]:
    """Hits and misses."""
    hits, misses = (
        now("legokv_chunk_lookups_total", tier=tier, result=result) for result in ("hit", "miss")
    )
    return hits, misses


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-9] ^= 64
    file.write_bytes(content)


@pytest.mark.alone
def test_gauges_show_what_runs_and_return_to_their_start(fresh: RunningServer) -> None:
    ids = fresh.register(*TEXTS)
    fresh.ask(text_input=QUESTION, document_ids=ids, max_tokens=1)
    start = at_rest(fresh)
    slow = {"return_log_probs": True, "num_top_log_probs": 20, "min_tokens": 900}
    fields = {"text_input": QUESTION, "document_ids": ids, "max_tokens": 900, **slow}
    with closing(fresh.client()) as client, ThreadPoolExecutor(2) as threads:
        leaving = replies(client, stream=True, **fields)
        next(leaving)
        staying = [threads.submit(fresh.stream, **fields) for _ in range(2)]
        busy = settled(fresh, lambda now: now("legokv_requests_running") == 3)
        leaving.close()
        for answer in staying:
            answer.result()
    assert busy("legokv_requests_running") == 3
    assert busy("legokv_active_leases") > 0
    assert busy("legokv_pool_pages_used") > start("legokv_pool_pages_used")
    end = at_rest(fresh)
    page_bytes = end("legokv_cache_bytes", tier="pool") / end("legokv_pool_pages_used")
    assert page_bytes == 16 * 3 * 2 * 2 * 16 * 4  # slots, layers, K and V, heads, size, float32
    for name in GAUGES:
        assert end(name) == start(name), name
    assert end("legokv_active_leases") == 0


@pytest.mark.alone
def test_a_request_that_waits_for_pages_is_shown_as_waiting(fresh: RunningServer) -> None:
    before = at_rest(fresh)
    with ThreadPoolExecutor(3) as threads:
        fields = {"text_input": "Who?", "max_tokens": 1900, "min_tokens": 1900}
        answers = [threads.submit(fresh.ask, **fields) for _ in range(3)]
        busy = settled(fresh, lambda now: [now(name) for name in GAUGES[:2]] == [2, 1])
        waited = [answer.result()["queue_seconds"] for answer in answers]
    assert (busy("legokv_requests_running"), busy("legokv_requests_waiting")) == (2, 1)
    after = at_rest(fresh)
    assert (after("legokv_requests_running"), after("legokv_requests_waiting")) == (0, 0)
    grown = after.since(before)("legokv_request_queue_seconds_sum")
    assert grown == pytest.approx(sum(waited), abs=1e-6)
    assert max(waited) > 0.1
