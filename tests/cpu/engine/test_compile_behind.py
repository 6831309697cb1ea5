"""Chunks compiled behind others: a document is exact as a whole, and its beginning its one seam."""

import numpy as np
import pytest
import torch
from dense_link import dense_logits
from tier_engines import files

from legokv import Engine, EngineSettings
from legokv.engine.request import MODES_BY_ATTENTION
from legokv.errors import InvalidRequest, PoolFull, StepFailed
from legokv.model.config import scoring_layers

CLOSE = {"atol": 1e-4, "rtol": 1e-4}


def random_lists(seed, *lengths):
    dice = np.random.Generator(np.random.PCG64(seed))
    return [dice.integers(3, 384, length).tolist() for length in lengths]


def document(engine, *spans, behind=()):
    """The chunks of one document."""
    chunks = []
    for ids in spans:
        chunks.append(engine.chunk(ids, behind=chunks[-1] if chunks else behind))
    return chunks


@pytest.fixture(scope="module")
def engines(tiny_engine_folder):
    opened = {}

    def engine(name="llama"):
        if name not in opened:
            settings = EngineSettings(pool_tokens=4096)
            opened[name] = Engine.open(tiny_engine_folder(name), settings=settings)
        return opened[name]

    return engine


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen3"])
@pytest.mark.parametrize("lengths", [(45,), (33, 16, 50), (7, 1, 64, 30, 41, 12)])
@pytest.mark.parametrize("mode", ["legolink", "legolink-0"])
def test_one_document_and_a_question_equal_full_recompute_at_any_length(
    engines, name, lengths, mode
):
    engine = engines(name)
    *spans, question = random_lists(1, *lengths, 9)
    linked = engine.prefill([*document(engine, *spans), question], mode=mode)
    plain = engine.prefill([*spans, question])
    torch.testing.assert_close(linked.logits, plain.logits, **CLOSE)
    assert (linked.cached_tokens, linked.recomputed_tokens) == (sum(lengths), 0)


@pytest.mark.parametrize("is_chunk", [True, False])
def test_the_first_document_behind_its_own_head_is_exact(engines, is_chunk):
    engine = engines()
    head, *spans, question = random_lists(2, 21, 40, 30, 9)
    first = engine.compile(head) if is_chunk else head
    chunks = document(engine, *spans, behind=first)
    linked = engine.prefill([first, *chunks, question])
    plain = engine.prefill([head, *spans, question])
    torch.testing.assert_close(linked.logits, plain.logits, **CLOSE)
    assert linked.recomputed_tokens == 0
    alone = engine.prefill([first, *document(engine, *spans), question], link_tokens=0)
    assert not torch.allclose(alone.logits, plain.logits, atol=1e-2)


def test_a_head_given_as_ids_is_the_chunk_that_documents_were_compiled_behind(engines):
    engine = engines()
    head, *spans, question = random_lists(2, 22, 40, 30, 9)
    one, two = (engine.compile(ids, behind=head) for ids in spans)
    linked = engine.prefill([head, one, two, question], link_tokens=8)
    assert (linked.cached_tokens, linked.recomputed_tokens) == (22 + 40 + 30 - 8, 8)
    assert linked.fresh_tokens == len(question)
    assert linked.usage.compiled_tokens == 0
    other = engine.prefill([head[1:], one, two, question], link_tokens=8)
    assert (other.recomputed_tokens, other.fresh_tokens) == (16, 21 + len(question))


def test_a_head_as_token_ids_and_as_a_chunk_give_the_same_chunk_and_an_empty_one_none(engines):
    engine = engines()
    head, ids = random_lists(3, 21, 40)
    chunk = engine.compile(ids, behind=head)
    assert chunk == engine.compile(np.array(ids), behind=engine.chunk(head))
    assert chunk.start == 21
    assert engine.compile(ids, behind=[]) == engine.compile(ids)
    assert engine.compile(ids).key != chunk.key != engine.chunk(ids, behind=head[:-1]).key


def test_linked_tokens_are_counted_by_document_and_every_other_head_is_a_seam(engines):
    engine = engines()
    head, other, *spans, question = random_lists(4, 21, 17, 40, 5, 33, 9)
    one = document(engine, *spans[:2], behind=head)
    two = document(engine, spans[1], spans[2], behind=head)
    assert engine.prefill([head, *one, *two, question], link_tokens=16).recomputed_tokens == 16
    assert engine.prefill([other, *one, *two, question], link_tokens=16).recomputed_tokens == 32
    assert engine.prefill([*one, question], link_tokens=16).recomputed_tokens == 16
    swapped = engine.prefill([one[1], one[0], question], link_tokens=16)
    assert swapped.recomputed_tokens == 5 + 16


@pytest.mark.parametrize("name", ["llama", "llama3", "qwen2"])
def test_documents_in_any_order_with_all_recomputed_equal_full_recompute(engines, name):
    engine = engines(name)
    head, *spans, question = random_lists(5, 21, 40, 18, 33, 9)
    one, two = document(engine, *spans[:2], behind=head), document(engine, spans[2], behind=head)
    for segments in ([head, *two, *one], [*one, *two], [one[1], *two, one[0]]):
        linked = engine.prefill([*segments, question], link_tokens=99)
        plain = engine.prefill([*segments, question], mode="full")
        torch.testing.assert_close(linked.logits, plain.logits, **CLOSE)


def test_legolink_0_puts_dummies_before_documents_and_nothing_inside_them(engines):
    engine = engines()
    *spans, question = random_lists(6, 30, 40, 18, 9)
    chunks = document(engine, *spans[1:])
    linked = engine.prefill([engine.chunk(spans[0]), *chunks, question], mode="legolink-0")
    dummies = [engine.facts.model.bos_token_id] * 4
    behind = engine.compile(dummies + spans[1] + spans[2])
    kept = [r for r in engine.cache.residents if r.chunk.token_ids == tuple(spans[2])]
    wanted = engine.runner.export_pages(engine.cache.find(behind.key).pages, 62)[:, :, 44:]
    assert any(
        torch.allclose(engine.runner.export_pages(r.pages, 18), wanted, atol=1e-5) for r in kept
    )
    assert linked.recomputed_tokens == 0


def test_an_evicted_chunk_is_compiled_again_with_what_stands_before_it(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=128))
    *spans, question = random_lists(7, 40, 33, 9)
    chunks = document(engine, *spans)
    before = engine.prefill([*chunks, question])
    for key in (chunks[0].key, chunks[1].key):
        engine.drop(key)
        again = engine.prefill([*chunks, question])
        torch.testing.assert_close(again.logits, before.logits, **CLOSE)
    for chunk in chunks:
        engine.drop(chunk.key)
    late = engine.prefill([chunks[1], question])
    assert late.usage.compiled_tokens == 40 + 33
    assert engine.cache.num_leases == 0


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_a_damaged_chunk_file_is_compiled_again_behind_the_others(
    tiny_engine_folder, tmp_path, damaged
):
    settings = EngineSettings(pool_tokens=256, cache_dir=tmp_path)
    *spans, question = random_lists(8, 40, 33, 20, 9)
    first = Engine.open(tiny_engine_folder(), settings=settings)
    chunks = document(first, *spans, behind=[5] * 10)
    wanted = first.prefill([[5] * 10, *chunks, question])
    (file,) = [f for f in files(tmp_path) if f.name.startswith(chunks[damaged].key)]
    file.write_bytes(file.read_bytes()[:-4] + b"\1\2\3\4")
    second = Engine.open(tiny_engine_folder(), settings=settings)
    # Alone in its prompt: what it was compiled behind is fetched only when the file proves bad.
    for segments in ([chunks[damaged]], [[5] * 10, *chunks]):
        again = second.prefill([*segments, question])
    torch.testing.assert_close(again.logits, wanted.logits, **CLOSE)
    assert second.executor.counters.compiled_chunks == 1
    assert second.cache.num_leases == 0
    assert second.cache.pool.num_used == sum(len(r.pages) for r in second.cache.residents)


def test_a_chunk_lost_between_the_question_and_the_reading_is_compiled_behind_the_others(
    tiny_engine_folder, tmp_path, monkeypatch
):
    settings = EngineSettings(pool_tokens=256, cache_dir=tmp_path)
    *spans, question = random_lists(8, 40, 33, 9)
    first = Engine.open(tiny_engine_folder(), settings=settings)
    chunks = document(first, *spans)
    wanted = first.prefill([chunks[1], question])
    for file in files(tmp_path):
        file.unlink()
    second = Engine.open(tiny_engine_folder(), settings=settings)
    transfer = second.executor._transfer
    answers, can_load = [True], transfer.can_load
    monkeypatch.setattr(
        transfer, "can_load", lambda *asked: answers.pop() if answers else can_load(*asked)
    )
    again = second.prefill([chunks[1], question])
    torch.testing.assert_close(again.logits, wanted.logits, **CLOSE)
    assert (answers, again.usage.compiled_tokens) == ([], 40 + 33)
    assert second.cache.num_leases == 0


def test_a_chunk_that_a_tier_has_is_linked_without_what_it_was_compiled_behind(
    tiny_engine_folder, tmp_path
):
    settings = EngineSettings(pool_tokens=256, cache_dir=tmp_path)
    head, ids, question = random_lists(9, 21, 40, 9)
    chunk = Engine.open(tiny_engine_folder(), settings=settings).compile(ids, behind=head)
    engine = Engine.open(tiny_engine_folder(), settings=settings)
    assert engine.prefill([chunk, question]).usage.compiled_tokens == 0
    assert [r.chunk.key for r in engine.cache.residents] == [chunk.key]


def test_a_chunk_whose_predecessor_fails_fails_with_it_and_nothing_is_held(
    tiny_engine_folder, monkeypatch
):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=512))
    *spans, question = random_lists(10, 40, 33, 20, 9)
    chunks = document(engine, *spans)

    def broken(batch):
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner, "run", broken)
        with pytest.raises(StepFailed, match="no more memory"):
            engine.prefill([*chunks, question])
    assert (engine.cache.num_leases, engine.cache.pool.num_used) == (0, 0)
    assert engine.executor.num_running == 0
    assert engine.prefill([*chunks, question]).cached_tokens == 93


def test_what_does_not_fit_behind_the_others_is_refused_with_the_numbers(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=64))
    context = engine.facts.model.context_len
    long = engine.chunk([5] * (context - 3))
    with pytest.raises(
        InvalidRequest, match=rf"4 tokens behind {context - 3} others exceed .* {context}"
    ):
        engine.chunk([5] * 4, behind=long)
    with pytest.raises(InvalidRequest, match="namespace 'a' cannot be compiled behind one of 'b'"):
        engine.chunk([5], "a", behind=engine.chunk([5], "b"))
    with pytest.raises(PoolFull, match="needs 5 pages of 16 tokens, the pool has 4"):
        engine.compile([5] * 20, behind=[6] * 40)


def test_a_document_recorded_before_chunks_saw_one_another_keeps_its_keys(engines):
    engine = engines()
    spans = [tuple(ids) for ids in random_lists(11, 20, 30, 10)]
    naming = engine._naming
    alone = [engine.chunk(ids).key for ids in spans]
    whole = [chunk.key for chunk in document(engine, *spans)]

    def keys(*recorded):
        found = naming.document_keys(zip(spans, recorded, strict=True), "default")
        return [named.key for named in found]

    assert keys(None, None, None) == keys(*whole) == whole
    assert keys(*alone) == alone
    # Begun by an older release, and gone on with by this one.
    mixed = keys(alone[0], alone[1], None)
    assert mixed == [*alone[:2], engine.chunk(spans[2], behind=engine.chunk(spans[1])).key]
    assert keys(*mixed) == mixed
    assert keys("of another", "type of", "KV") == whole


@pytest.mark.parametrize("head", [(), (5, 6, 7, 8, 9)])
def test_spread_recomputes_evenly_and_all_of_it_equals_full_recompute(engines, head):
    engine = engines()
    *spans, question = random_lists(12, 40, 33, 20, 9)
    one, two = document(engine, *spans[:2], behind=head), document(engine, spans[2], behind=head)
    segments = [*two, *one, question]
    plain = engine.prefill(segments, mode="full")
    linked = engine.prefill(segments, mode="spread", link_tokens=16)
    assert linked.recomputed_tokens == (32 if head else 16)
    assert not torch.allclose(linked.logits, plain.logits, **CLOSE)
    for budget in ({"link_tokens": 99}, {"recompute_percent": 100.0}):
        whole = engine.prefill(segments, mode="spread", **budget)
        torch.testing.assert_close(whole.logits, plain.logits, **CLOSE)
    share = engine.prefill(segments, mode="spread", recompute_percent=10)
    assert share.recomputed_tokens == round(7.3) + (2 if head else 0)


@pytest.mark.parametrize("mode", ["legolink", "spread"])
def test_recomputed_tokens_are_those_of_full_recompute_over_stored_ones(engines, mode):
    """Against a plain dense computation: what is not recomputed keeps its stored KV."""
    engine = engines()
    first, second, question = random_lists(13, 20, 24, 5)
    chunks = [engine.compile(first), engine.compile(second)]
    linked = engine.prefill([*chunks, question], mode=mode, link_tokens=6)
    chosen = range(20, 26) if mode == "legolink" else range(20, 44, 4)
    torch.testing.assert_close(
        linked.logits, dense_logits(engine, chunks, question, chosen), atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen3"])
def test_guided_recomputes_what_the_question_attends_to_most(engines, name):
    """Against a plain dense computation, which has the attention as a matrix."""
    engine = engines(name)
    *spans, question = random_lists(14, 20, 30, 24, 5)
    chunks = [engine.compile(ids) for ids in spans]
    mass = []
    dense_logits(engine, chunks, question, (), mass)
    scored = scoring_layers(len(mass))
    scores = torch.stack(mass[scored.start : scored.stop]).mean(0)[:74]
    # What stands first is exact and never chosen.
    chosen = sorted((scores[20:].argsort(descending=True)[:14] + 20).tolist())
    linked = engine.prefill([*chunks, question], mode="guided", recompute_percent=25)
    assert linked.recomputed_tokens == round(7.5) + 6 == 14
    wanted = dense_logits(engine, chunks, question, chosen)
    torch.testing.assert_close(linked.logits, wanted, atol=1e-3, rtol=1e-3)
    nothing = engine.prefill([*chunks, question], link_tokens=0)
    assert not torch.allclose(linked.logits, nothing.logits, atol=1e-2)


def test_guided_counts_as_legolink_does_and_with_all_recomputed_is_full_recompute(engines):
    engine = engines()
    head, *spans, question = random_lists(15, 12, 40, 33, 20, 9)
    one, two = document(engine, *spans[:2], behind=head), document(engine, spans[2], behind=head)
    segments = [head, *one, *two, question]
    linked = engine.prefill(segments, mode="guided", link_tokens=6)
    assert (linked.recomputed_tokens, linked.fresh_tokens) == (6, 9)
    whole = engine.prefill([*two, *one, question], mode="guided", recompute_percent=100)
    plain = engine.prefill([*two, *one, question], mode="full")
    torch.testing.assert_close(whole.logits, plain.logits, **CLOSE)
    tokens = list(engine.generate(segments, max_tokens=4, mode="guided"))
    assert len(tokens) == 4
    assert engine.cache.num_leases == 0


@pytest.mark.parametrize("mode", MODES_BY_ATTENTION)
def test_a_runner_that_gives_no_attention_refuses_what_asks_for_it_and_says_what_gives_it(
    engines, monkeypatch, mode
):
    engine = engines()
    monkeypatch.setattr(engine.runner, "no_attention", "which it does not say: open another")
    sentence = f"mode '{mode}' asks what the question attends to, which .* say: open another$"
    with pytest.raises(InvalidRequest, match=sentence):
        engine.prefill([[5, 6]], mode=mode)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"mode": "guess"},
            "mode is one of legolink, .*full, not 'guess'",
        ),
        (
            {"link_tokens": 4, "recompute_percent": 5.0},
            "link_tokens 4 and recompute_percent 5.0",
        ),
        ({"recompute_percent": 101}, "recompute_percent is 0 to 100, not 101"),
        ({"recompute_percent": -0.5}, "recompute_percent is 0 to 100, not -0.5"),
        ({"recompute_percent": float("nan")}, "recompute_percent is 0 to 100, not nan"),
        ({"recompute_percent": "5"}, "recompute_percent is a number, not a text '5'"),
        (
            {"recompute_percent": 5, "mode": "full"},
            "5 belongs to modes legolink, spread, ranked, guided",
        ),
    ],
)
def test_a_budget_that_cannot_be_is_refused_with_the_numbers(engines, fields, message):
    with pytest.raises(InvalidRequest, match=message):
        engines().prefill([[5, 6]], **fields)
