"""The five checks that must hold exactly if this is EPIC, on tiny checkpoints in float32."""

import numpy as np
import pytest
import torch

from legokv import Engine, EngineSettings
from legokv.model.rope import inverse_frequencies

# float32 sums in another order, over a few layers; logits of tiny checkpoints are of size 10.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}
VARIANTS = ("llama", "llama3", "llama-yarn", "qwen2", "qwen3")


def random_lists(seed, *lengths):
    dice = np.random.Generator(np.random.PCG64(seed))
    return [dice.integers(3, 384, length).tolist() for length in lengths]


@pytest.fixture(scope="module")
def engines(tiny_engine_folder):
    opened = {}

    def engine(name):
        if name not in opened:
            opened[name] = Engine.open(
                tiny_engine_folder(name), settings=EngineSettings(pool_tokens=4096)
            )
        return opened[name]

    return engine


@pytest.mark.parametrize("name", VARIANTS)
def test_1_with_k_at_least_every_chunk_s_length_logits_equal_full_recompute(engines, name):
    engine = engines(name)
    *chunks, question = random_lists(1, 40, 33, 7, 50, 9)
    segments = [*map(engine.compile, chunks), question]
    linked = engine.prefill(segments, link_tokens=50)
    full = engine.prefill(segments, mode="full")
    torch.testing.assert_close(linked.logits, full.logits, **CLOSE)
    assert linked.cached_tokens == 40
    assert full.cached_tokens == 0


@pytest.mark.parametrize("name", VARIANTS)
def test_full_recompute_equals_a_prompt_without_chunks(engines, name):
    engine = engines(name)
    *chunks, question = random_lists(2, 40, 33, 9)
    full = engine.prefill([*map(engine.compile, chunks), question], mode="full")
    plain = engine.prefill([*chunks, question])
    torch.testing.assert_close(full.logits, plain.logits, **CLOSE)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("link_tokens", [0, 5, 16, 99])
def test_2_one_chunk_and_a_question_equal_full_recompute_whatever_k(engines, name, link_tokens):
    engine = engines(name)
    chunk, question = random_lists(3, 45, 6)
    linked = engine.prefill([engine.compile(chunk), question], link_tokens=link_tokens)
    plain = engine.prefill([chunk + question])
    torch.testing.assert_close(linked.logits, plain.logits, **CLOSE)
    assert linked.cached_tokens == 45


@pytest.mark.parametrize("name", VARIANTS)
def test_3_layer_0_keys_and_values_of_a_linked_chunk_equal_full_recompute_s(engines, name):
    engine = engines(name)
    first, second = random_lists(4, 37, 21)
    alone = stored_kv(engine, engine.compile(second))
    whole = stored_kv(engine, engine.compile(first + second))[:, :, 37:]
    base = torch.full((21,), 37)
    turned = turn(alone[0, 0], base, engine)
    torch.testing.assert_close(turned, whole[0, 0], **CLOSE)
    torch.testing.assert_close(alone[0, 1], whole[0, 1], **CLOSE)
    # The check would be empty if deeper layers agreed too: they see other tokens before them.
    assert not torch.allclose(alone[1, 1], whole[1, 1], **CLOSE)


@pytest.mark.parametrize(
    ("link_tokens", "lengths"), [(16, [40, 40, 40]), (16, [5, 7, 90]), (0, [9, 9])]
)
def test_4_recomputed_tokens_are_k_for_each_chunk_but_the_first(engines, link_tokens, lengths):
    engine = engines("llama")
    *chunks, question = random_lists(5, *lengths, 11)
    linked = engine.prefill([*map(engine.compile, chunks), question], link_tokens=link_tokens)
    assert linked.recomputed_tokens == sum(min(link_tokens, n) for n in lengths[1:])
    assert linked.fresh_tokens == 11
    assert linked.cached_tokens + linked.recomputed_tokens == sum(lengths)


def test_5_a_chunk_s_stored_bytes_are_the_same_whatever_used_it_before(engines):
    engine = engines("llama")
    *ids, question = random_lists(6, 40, 33, 18, 9)
    a, b, c = map(engine.compile, ids)
    before = [stored_kv(engine, chunk) for chunk in (a, b, c)]
    for segments in ([c, a, b], [b, c], [a, a, b], [c, b, a]):
        for link_tokens in (0, 7, 16, 40):
            engine.prefill([*segments, question], link_tokens=link_tokens)
        list(engine.generate([*segments, question], max_tokens=20))
    for chunk, kv in zip((a, b, c), before, strict=True):
        assert torch.equal(stored_kv(engine, chunk), kv)


def test_legolink_0_links_what_was_compiled_behind_four_dummies_and_recomputes_nothing(engines):
    engine = engines("llama")
    first, second, question = random_lists(7, 37, 40, 9)
    chunks = [engine.compile(ids) for ids in (first, second)]
    linked = engine.prefill([*chunks, question], mode="legolink-0")
    assert (linked.recomputed_tokens, linked.fresh_tokens) == (0, 9)
    (variant,) = (r for r in engine.cache.residents if r.chunk.start == 4)
    dummies = [engine.facts.model.bos_token_id] * 4
    behind = stored_kv(engine, engine.compile(dummies + second))[:, :, 4:]
    torch.testing.assert_close(
        engine.runner.export_pages(variant.pages, 40), behind, atol=1e-5, rtol=1e-4
    )
    assert not torch.allclose(stored_kv(engine, chunks[1]), behind, atol=1e-2)
    naive = engine.prefill([*chunks, question], link_tokens=0)
    assert not torch.allclose(naive.logits, linked.logits, atol=1e-2)


def stored_kv(engine, chunk):
    """The KV [L, 2, n, G, D] of a chunk in the pool."""
    resident = engine.cache.find(chunk.key)
    return engine.runner.export_pages(resident.pages, chunk.num_tokens)


def turn(keys, by, engine):
    """keys [n, G, D] rotated on by `by` [n] positions, with complex numbers in float64."""
    model = engine.facts.model
    frequencies = inverse_frequencies(model.rope, model.head_size, model.max_positions)
    angle = by[:, None, None].double() * torch.tensor(frequencies, dtype=torch.float64)
    half = model.head_size // 2
    pairs = torch.complex(keys[..., :half].double(), keys[..., half:].double())
    turned = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), -1).float()
