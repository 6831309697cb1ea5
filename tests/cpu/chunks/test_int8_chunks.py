"""An engine that keeps KV as int8: one answer for a chunk, wherever it comes from."""

import pytest
import torch
from texts import random_ids

from legokv import Engine, EngineSettings
from legokv.errors import InvalidRequest

IDS = [random_ids(n) for n in (1, 2)]


@pytest.fixture
def open_engine(tiny_engine_folder, tmp_path):
    def opened(form="int8", *, machine="here", **settings):
        return Engine.open(
            tiny_engine_folder(),
            settings=EngineSettings(
                cache_dir=tmp_path / machine,
                attention="torch",
                kv_stored_dtype=form,
                **{"pool_tokens": 16 * 10, **settings},
            ),
        )

    return opened


def answer(engine):
    return engine.prefill([*map(engine.chunk, IDS), [5, 6]])


def tier(engine, name):
    return {stats.tier: stats for stats in engine.cache_stats()}[name]


def push_out(engine):
    """Fill the pool with another chunk, which nobody keeps."""
    engine.compile(random_ids(9, 150), persistent=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_chunk_gives_the_same_answer_just_compiled_from_every_tier_and_after_a_restart(
    open_engine, redis_url, dtype
):
    first = open_engine(dtype=dtype, redis_url=redis_url)
    fresh = answer(first)
    assert fresh.usage.compiled_tokens == 80
    expected = fresh.logits
    assert torch.equal(answer(first).logits, expected)
    push_out(first)
    from_host = answer(first)
    assert tier(first, "host").hits == 2
    diskless = open_engine(dtype=dtype, host_bytes=0)
    from_disk = answer(diskless)
    assert tier(diskless, "disk").hits == 2
    restarted = answer(open_engine(dtype=dtype))
    other = open_engine(dtype=dtype, machine="other", redis_url=redis_url)
    from_redis = answer(other)
    assert tier(other, "remote").hits == 2
    for result in (from_host, from_disk, restarted, from_redis):
        assert torch.equal(result.logits, expected)
        assert result.usage.compiled_tokens == 0
    alone = open_engine(dtype=dtype, machine="alone", host_bytes=0, disk_bytes=0)
    assert torch.equal(answer(alone).logits, expected), "where no tier keeps anything"


def test_what_left_the_pool_and_came_back_many_times_is_still_the_same(open_engine):
    engine = open_engine(machine="nothing on disk", disk_bytes=0)
    expected = answer(engine).logits
    for _ in range(5):
        engine.tiers.tiers[0].clear()  # so that it is rounded anew from what the pool has
        push_out(engine)
        result = answer(engine)
        assert torch.equal(result.logits, expected)
        assert result.usage.compiled_tokens == 0


def test_int8_answers_are_near_those_of_the_model_s_type_and_not_the_same(open_engine):
    exact = answer(open_engine("model")).logits
    near = answer(open_engine()).logits
    error = (exact - near).norm() / exact.norm()
    # Half a step of 127 is 0.4 % of a head's largest value.
    assert 1e-5 < error < 0.05


def test_a_chunk_behind_dummies_is_rounded_too(open_engine):
    engine = open_engine()
    segments = [*map(engine.chunk, IDS), [5, 6]]
    expected = engine.prefill(segments, mode="legolink-0").logits
    push_out(engine)
    assert torch.equal(engine.prefill(segments, mode="legolink-0").logits, expected)


def test_both_forms_lie_side_by_side_in_one_folder_and_are_never_mixed_up(open_engine):
    exact, near = open_engine("model"), open_engine()
    expected, rounded = answer(exact).logits, answer(near).logits
    assert answer(near).usage.compiled_tokens == 0
    assert tier(near, "disk").num_chunks == 4
    for form, logits in (("model", expected), ("int8", rounded)):
        result = answer(open_engine(form))
        assert torch.equal(result.logits, logits)
        assert result.usage.compiled_tokens == 0


def test_engines_of_two_types_share_no_int8_chunk(open_engine):
    answer(open_engine())
    assert answer(open_engine(dtype="bfloat16")).usage.compiled_tokens == 80


def test_host_and_disk_hold_half_the_bytes(open_engine):
    num_bytes = {}
    for form in ("model", "int8"):
        engine = open_engine(form, machine=form, dtype="bfloat16")
        answer(engine)
        push_out(engine)
        kv = engine.facts.model.num_layers * 2 * 40 * engine.facts.model.num_kv_heads
        head_size = engine.facts.model.head_size
        num_bytes[form] = [tier(engine, name).num_bytes for name in ("host", "disk")]
    values, scales = 2 * kv * head_size, 2 * kv * 2
    assert num_bytes["int8"][0] == values + scales
    assert num_bytes["model"][0] == 2 * values
    headers = num_bytes["model"][1] - 2 * values
    assert abs(num_bytes["int8"][1] - (values + scales) - headers) < 2 * 120


def test_a_form_that_there_is_not_is_refused_before_anything_is_opened(open_engine):
    with pytest.raises(InvalidRequest, match="kv_stored_dtype is one of model, int8, not 'int4'"):
        open_engine("int4")
