"""Rankings of chunks: what they say, where they are kept, and the modes that read them."""

import numpy as np
import pytest
import torch
from dense_link import dense_logits
from tier_engines import files, open_engine_fixture  # noqa: F401

from legokv.engine.ranking import FOREIGN_TEXT, FOREIGN_TOKENS
from legokv.errors import InvalidRequest, PoolFull

MODES = ("ranked", "guided-ranked")
NOTHING_ELSE = {"atol": 1e-3, "rtol": 1e-3}


def random_lists(seed, *lengths):
    dice = np.random.Generator(np.random.PCG64(seed))
    return [dice.integers(3, 384, length).tolist() for length in lengths]


def ranking_of(engine, chunk):
    return engine.cache.find(chunk.key).ranking


def keys_of(engine, chunk):
    """Float64 [L, n, G, D/2] of complex numbers, turned back to position 0."""
    kv = engine.runner.export_pages(engine.cache.find(chunk.key).pages, chunk.num_tokens)
    first, second = kv[:, 0].double().chunk(2, dim=-1)
    config = engine.facts.model
    steps = torch.arange(config.head_size // 2, dtype=torch.float64) * 2 / config.head_size
    angles = chunk.start * config.rope.theta**-steps
    return torch.complex(first, second) * torch.polar(torch.ones_like(angles), -angles)


def test_a_ranking_is_how_far_keys_move_behind_foreign_text(open_engine):
    engine = open_engine(pool_tokens=2048)
    head, ids = random_lists(1, 21, 40)
    for behind in ((), head):
        chunk = engine.compile(ids, behind=behind, rank=True)
        foreign = engine.tokenizer.encode(FOREIGN_TEXT)[:FOREIGN_TOKENS]
        other = engine.compile(ids, behind=foreign)
        moved = (keys_of(engine, chunk) - keys_of(engine, other)).abs().square().sum((2, 3))
        expected = moved.sqrt().mean(0).float().numpy()
        np.testing.assert_allclose(ranking_of(engine, chunk), expected, atol=1e-4)
        assert expected.max() > 1.5 * expected.min()


@pytest.mark.parametrize("mode", MODES)
def test_the_first_of_the_rankings_are_recomputed_and_no_others(open_engine, mode):
    engine = open_engine(pool_tokens=2048)
    *spans, question = random_lists(2, 20, 30, 24, 5)
    chunks = [engine.compile(ids, rank=number > 0) for number, ids in enumerate(spans)]
    scores = np.concatenate([np.zeros(20), *(ranking_of(engine, c) for c in chunks[1:])])
    if mode == "guided-ranked":
        masses = []
        dense_logits(engine, chunks, question, (), masses)
        scores = scores * masses[0][:74].numpy()
    chosen = sorted(np.argsort(-scores, kind="stable")[:14].tolist())
    # What stands first is exact: it needs no ranking.
    linked = engine.prefill([*chunks, question], mode=mode, recompute_percent=25)
    assert linked.recomputed_tokens == 14
    wanted = dense_logits(engine, chunks, question, chosen)
    torch.testing.assert_close(linked.logits, wanted, **NOTHING_ELSE)


@pytest.mark.parametrize("stored", ["model", "int8"])
def test_a_ranking_is_kept_with_its_chunk_and_read_again_with_the_same_numbers(
    open_engine, tmp_path, stored
):
    engine = open_engine(pool_tokens=2048, kv_stored_dtype=stored)
    ids, question = random_lists(3, 40, 5)
    chunk = engine.compile(ids)
    (before,) = (file.read_bytes() for file in files(tmp_path))
    engine.rank(chunk)
    (after,) = (file.read_bytes() for file in files(tmp_path))
    assert len(after) - len(before) in range(160, 260)  # 40 numbers of four bytes, and their name
    again = open_engine(pool_tokens=2048, kv_stored_dtype=stored)
    again.prefill([[7], chunk, question], mode="ranked", link_tokens=4)
    np.testing.assert_array_equal(ranking_of(again, chunk), ranking_of(engine, chunk))
    plain, same = (e.prefill([[7], chunk, question], link_tokens=4) for e in (engine, again))
    assert torch.equal(plain.logits, same.logits)


def test_a_ranking_lives_through_eviction_into_host_memory(open_engine):
    engine = open_engine(pool_tokens=512, cache_dir=None, host_bytes=2**24)
    one, other = random_lists(4, 160, 400)
    chunk = engine.compile(one, rank=True)
    expected = ranking_of(engine, chunk)
    engine.compile(other)
    assert engine.cache.find(chunk.key) is None
    engine.prefill([[7], chunk, [5]], mode="ranked")
    np.testing.assert_array_equal(ranking_of(engine, chunk), expected)


def test_ranking_a_chunk_again_computes_nothing(open_engine):
    engine = open_engine(pool_tokens=2048)
    chunk = engine.compile(random_lists(5, 40)[0], rank=True)
    steps = engine.executor.counters.steps
    engine.rank(chunk)
    assert engine.executor.counters.steps == steps
    assert engine.cache.num_leases == 0


@pytest.mark.parametrize("mode", MODES)
def test_a_ranking_that_is_missing_is_refused_with_how_to_make_it(open_engine, mode):
    engine = open_engine(pool_tokens=2048)
    first, second = (engine.compile(ids) for ids in random_lists(6, 40, 30))
    with pytest.raises(InvalidRequest) as refusal:
        engine.prefill([first, second, [5]], mode=mode)
    assert str(refusal.value) == (
        f"mode '{mode}' needs the ranking of every chunk, and number 2 of 2, of 30 tokens, has "
        "none: register its document with rank true, or call rank(chunk) in the library"
    )
    assert engine.cache.num_leases == 0
    engine.rank(second)
    assert engine.prefill([first, second, [5]], mode=mode, link_tokens=3).recomputed_tokens == 3


def test_a_chunk_that_the_pool_has_no_room_for_twice_cannot_be_ranked(open_engine):
    engine = open_engine(pool_tokens=512)
    chunk = engine.compile(random_lists(7, 300)[0])
    with pytest.raises(PoolFull, match="pool has 32"):
        engine.rank(chunk)
    assert engine.cache.num_leases == 0


def test_a_chunk_as_long_as_the_context_is_ranked_behind_what_fits(open_engine):
    engine = open_engine(pool_tokens=4096)
    chunk = engine.compile(random_lists(8, engine.facts.model.context_len - 5)[0], rank=True)
    assert np.isfinite(ranking_of(engine, chunk)).all()
