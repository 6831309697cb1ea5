"""Several models in one cache folder: one budget, and leftovers that can be removed."""

import time

import pytest
from small_chunks import NUM_TOKENS, file_bytes, small_chunk, small_disk_tier, small_kv

from legokv.documents.document import NewDocument
from legokv.errors import Busy
from legokv.stores.local import neighbours
from legokv.stores.local.registry import Registry
from legokv.stores.tiers import disk_models, remove_disk_model

OLD, NEW, THIRD = ("a" * 16, "b" * 16, "c" * 16)


def folder_bytes(cache):
    return sum(path.stat().st_size for path in cache.rglob("*.safetensors"))


def filled(cache, model, number, **limits):
    tier = small_disk_tier(cache / model, **limits)
    for n in range(number):
        tier.write(small_chunk(n), small_kv(n))
    return tier


@pytest.fixture(name="one_chunk")
def one_chunk_fixture(tmp_path):
    return file_bytes(tmp_path / "size")


def test_another_model_s_kv_gives_way_to_what_is_written_now(tmp_path, one_chunk):
    cache, budget = tmp_path / "cache", 6 * one_chunk
    old = filled(cache, OLD, 6, disk_bytes=budget)
    assert folder_bytes(cache) == budget
    new = filled(cache, NEW, 4, disk_bytes=budget)
    assert folder_bytes(cache) <= budget
    assert (new.stats().num_chunks, old.stats().num_chunks) == (4, 2)
    assert [n for n in range(6) if old.has(small_chunk(n).key)] == [4, 5]


def test_the_model_used_longest_ago_gives_way_first(tmp_path, one_chunk):
    cache, budget = tmp_path / "cache", 6 * one_chunk
    oldest = filled(cache, THIRD, 3, disk_bytes=budget)
    time.sleep(0.02)
    old = filled(cache, OLD, 3, disk_bytes=budget)
    filled(cache, NEW, 2, disk_bytes=budget)
    assert (oldest.stats().num_chunks, old.stats().num_chunks) == (1, 3)


def test_what_others_pinned_stays_and_the_new_model_has_what_is_left(tmp_path, one_chunk):
    cache, budget = tmp_path / "cache", 6 * one_chunk
    old = filled(cache, OLD, 4, disk_bytes=budget)
    with Registry.open(cache / OLD / "registry.sqlite") as registry:
        spans = tuple(small_chunk(n).token_ids for n in range(4))
        document = NewDocument("default", "Pinned.", spans)
        registry.register(document, {"pinned": True}, 10 * NUM_TOKENS)
        claim = registry.take_claim("default", document.id, 60.0)
        for n in range(4):
            registry.record_chunk(claim, n, small_chunk(n).key)
        registry.finish_claim(claim)
    new = filled(cache, NEW, 5, disk_bytes=budget)
    assert (old.stats().num_chunks, new.stats().num_chunks) == (4, 2)
    assert folder_bytes(cache) <= budget


def test_a_smaller_budget_is_kept_when_the_cache_is_opened(tmp_path, one_chunk):
    cache = tmp_path / "cache"
    filled(cache, OLD, 6)
    small_disk_tier(cache / NEW, disk_bytes=2 * one_chunk).trim()
    assert folder_bytes(cache) == 2 * one_chunk


def test_a_folder_that_is_removed_meanwhile_is_counted_no_more(tmp_path, one_chunk, monkeypatch):
    cache, budget = tmp_path / "cache", 6 * one_chunk
    filled(cache, OLD, 5, disk_bytes=budget).stored._database.close()
    monkeypatch.setattr(neighbours, "COUNT_SECONDS", 0.0)
    new = filled(cache, NEW, 1, disk_bytes=budget)
    remove_disk_model(cache, OLD)
    for n in range(6):
        new.write(small_chunk(n), small_kv(n))
    assert new.stats().num_chunks == 6


def test_models_are_listed_and_removed_unless_somebody_uses_them(tmp_path, one_chunk):
    cache = tmp_path / "cache"
    tier = filled(cache, OLD, 2)
    filled(cache, NEW, 1)
    (cache / "notes").mkdir()
    kept = disk_models(cache)
    assert list(kept) == [OLD, NEW]
    assert (kept[OLD].num_chunks, kept[OLD].num_bytes) == (2, 2 * one_chunk)
    with pytest.raises(Busy, match="stop the servers of this model first"):
        remove_disk_model(cache, OLD)
    assert tier.stats().num_chunks == 2
    tier.stored._database.close()
    remove_disk_model(cache, OLD)
    assert not (cache / OLD).exists()
    assert list(disk_models(cache)) == [NEW]
