"""The library on tiny checkpoints: what any caller may rely on, on any segments, in any order."""

import time

import numpy as np
import pytest
import torch
from texts import random_ids

from legokv import Engine, EngineSettings, SamplingOptions
from legokv.engine.request import GenerateRequest
from legokv.errors import Busy, InvalidRequest, PoolFull


@pytest.fixture
def engine(tiny_engine_folder):
    return Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=1024, max_step_tokens=64)
    )


def test_token_ids_may_be_any_integer_sequence_or_array(engine):
    ids = np.array(random_ids(1, 20))
    expected = engine.prefill([ids]).logits
    for same in (tuple(ids.tolist()), ids.astype(np.uint16), torch.from_numpy(ids), range(3, 3)):
        segments = [same, ids.tolist()] if len(same) == 0 else [same]
        assert torch.equal(engine.prefill(segments).logits, expected)
    assert engine.compile(ids) == engine.compile(ids.tolist()) == engine.compile(tuple(ids))


def test_logits_are_float32_of_the_next_token(engine):
    logits = engine.prefill([[5, 6, 7]]).logits
    assert (logits.dtype, tuple(logits.shape)) == (torch.float32, (384,))


def test_a_chunk_compiled_in_pieces_is_the_chunk_compiled_at_once(tiny_engine_folder):
    ids = random_ids(2, 200)
    stored = []
    for max_step_tokens in (7, 64, 512):
        engine = Engine.open(
            tiny_engine_folder(),
            settings=EngineSettings(pool_tokens=1024, max_step_tokens=max_step_tokens),
        )
        pages = engine.cache.find(engine.compile(ids).key).pages
        stored.append(engine.runner.export_pages(pages, 200))
    torch.testing.assert_close(stored[0], stored[2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(stored[1], stored[2], atol=1e-5, rtol=1e-4)


def test_a_continuation_equals_prefill_of_prompt_and_answer_so_far(engine):
    chunks = [engine.compile(random_ids(n, 30)) for n in (1, 2)]
    question = random_ids(3, 13)
    answer = [token.id for token in engine.generate([*chunks, question], max_tokens=25)]
    for length in range(len(answer)):
        logits = engine.prefill([*chunks, question + answer[:length]]).logits
        assert int(logits.argmax()) == answer[length]


def test_requests_in_one_batch_answer_as_they_do_alone(engine):
    chunks = [engine.compile(random_ids(n, 20 + 9 * n)) for n in range(4)]
    prompts = [
        [chunks[a], chunks[b], random_ids(10 * a + b, 5 + a)]
        for a in range(4)
        for b in range(4)
        if a != b
    ]
    alone = [[t.id for t in engine.generate(prompt, max_tokens=12)] for prompt in prompts]
    jobs = [engine.submit(GenerateRequest(prompt, 12)) for prompt in prompts]
    together = [[t.id for t in engine.results(job) if hasattr(t, "id")] for job in jobs]
    assert together == alone


def test_an_identical_request_and_one_in_another_order_are_answered_as_the_first_time(engine):
    a, b = engine.compile(random_ids(1, 40)), engine.compile(random_ids(2, 40))
    first = engine.prefill([a, b, [5, 6]]).logits
    other = engine.prefill([b, a, [5, 6]]).logits
    assert torch.equal(engine.prefill([a, b, [5, 6]]).logits, first)
    assert torch.equal(engine.prefill([b, a, [5, 6]]).logits, other)
    assert not torch.equal(first, other)


def test_a_prompt_of_nothing_but_a_chunk_is_answered(engine):
    ids = random_ids(4, 33)
    plain = engine.prefill([ids]).logits
    reused = engine.prefill([engine.compile(ids)])
    torch.testing.assert_close(reused.logits, plain, atol=1e-4, rtol=1e-4)
    assert (reused.cached_tokens, reused.fresh_tokens) == (32, 1)


def test_an_evicted_chunk_is_compiled_again_and_the_answer_is_the_same(tiny_engine_folder):
    engine = Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=16 * 10, host_bytes=0)
    )
    a, b = engine.compile(random_ids(1, 40)), engine.compile(random_ids(2, 40))
    expected = engine.prefill([a, b, [5, 6]])
    assert expected.usage.compiled_tokens == 0
    engine.compile(random_ids(3, 70))
    assert engine.cache.find(a.key) is None
    again = engine.prefill([a, b, [5, 6]])
    assert again.usage.compiled_tokens == 40
    assert torch.equal(again.logits, expected.logits)


def test_a_chunk_in_use_is_not_evicted_however_long_others_wait_for_pages(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=16 * 10))
    chunk, prompt = engine.compile(random_ids(1, 70)), random_ids(2, 8)
    alone = [token.id for token in engine.generate([chunk, prompt], max_tokens=20)]
    job = engine.submit(GenerateRequest([chunk, prompt], 20))
    other = engine.submit_compile(engine.chunk(random_ids(3, 90)))
    assert [event.id for event in engine.results(job) if hasattr(event, "id")] == alone
    assert [event.finish_reason for event in engine.results(other)] == ["stop"]
    assert engine.cache.find(chunk.key) is None


def test_leases_and_private_pages_return_to_their_start(engine):
    chunk = engine.compile(random_ids(1, 40))
    used = engine.cache.pool.num_used
    list(engine.generate([chunk, [5, 6]], max_tokens=30))
    engine.prefill([[9, 8], chunk, [5, 6]], link_tokens=3)
    tokens = engine.generate([chunk, [5, 6]], max_tokens=30)
    next(tokens)
    tokens.close()
    engine.step()
    assert engine.cache.pool.num_used == used
    assert engine.cache.num_leases == 0


def test_a_request_larger_than_the_pool_is_refused_with_the_numbers(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=64))
    with pytest.raises(PoolFull, match="needs 7 pages of 16 tokens, the pool has 4") as refused:
        engine.prefill([random_ids(1, 100)])
    assert refused.value.code == "INVALID_ARG", "asking again would not help"
    with pytest.raises(PoolFull, match="needs 7 pages of 16 tokens, the pool has 4"):
        engine.compile(random_ids(1, 100))
    assert engine.prefill([[5, 6, 7]]).fresh_tokens == 3


def test_requests_wait_for_pages_that_others_hold(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=16 * 6))
    prompts = [random_ids(n, 40) for n in range(5)]
    alone = [[t.id for t in engine.generate([p], max_tokens=6)] for p in prompts]
    jobs = [engine.submit(GenerateRequest([p], 6)) for p in prompts]
    assert [[t.id for t in engine.results(j) if hasattr(t, "id")] for j in jobs] == alone


def test_a_full_queue_refuses_one_more_with_the_numbers_and_those_in_it_are_answered(
    tiny_engine_folder,
):
    engine = Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=16 * 6, max_queue_requests=3)
    )
    prompts = [random_ids(n, 40) for n in range(3)]
    alone = [[t.id for t in engine.generate([p], max_tokens=6)] for p in prompts]
    jobs = [engine.submit(GenerateRequest([p], 6)) for p in prompts]
    with pytest.raises(Busy, match="the queue is full: 3 waiting, max_queue_requests allows 3"):
        engine.submit(GenerateRequest([prompts[0]], 6))
    compiling = engine.submit_compile(engine.chunk(random_ids(9, 20)))
    assert [[t.id for t in engine.results(j) if hasattr(t, "id")] for j in jobs] == alone
    assert [event.finish_reason for event in engine.results(compiling)] == ["stop"]
    assert [t.id for t in engine.generate([prompts[0]], max_tokens=6)] == alone[0]


def test_a_long_prompt_is_answered_while_as_many_decode_as_a_step_has_tokens(tiny_engine_folder):
    engine = Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=4096, max_step_tokens=4)
    )
    alone = [t.id for t in engine.generate([random_ids(9, 20)], max_tokens=2)]
    decoding = [engine.submit(GenerateRequest([[5, 6, n]], 300)) for n in range(7, 13)]
    while any(job.usage.generated_tokens == 0 for job in decoding):
        engine.step()
    long = engine.submit(GenerateRequest([random_ids(9, 20)], 2))
    for _ in range(60):
        engine.step()
    assert all(job.usage.generated_tokens < 300 for job in decoding)
    assert long.usage.generated_tokens == 2
    assert [event.id for event in engine.results(long) if hasattr(event, "id")] == alone


def test_a_prompt_past_the_context_is_refused_with_the_numbers(engine):
    with pytest.raises(
        InvalidRequest,
        match="2040 prompt tokens and max_tokens 20 exceed the model's context of 2048 tokens",
    ):
        list(engine.generate([random_ids(1, 2040)], max_tokens=20))


def test_an_answer_far_past_the_context_is_refused_without_laying_out_its_pages(engine):
    started = time.process_time()
    with pytest.raises(InvalidRequest, match="1 prompt tokens and max_tokens 2147483647 exceed"):
        engine.generate([[5]], max_tokens=2**31 - 1)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda e: e.prefill([[5]], link_tokens=-1), "link_tokens is 0 or more, not -1"),
        (
            lambda e: e.prefill([[5]], mode="fast"),
            "mode is one of legolink, spread, ranked, guided, guided-ranked, .*, not",
        ),
        (lambda e: e.prefill([]), "the prompt has 0 tokens"),
        (lambda e: e.compile([]), "a chunk has 0 tokens"),
        (lambda e: e.compile([5, 384]), "token ids lie between 0 and 383, not 5 to 384"),
        (lambda e: e.prefill([[-1]]), "token ids lie between 0 and 383, not -1 to -1"),
        (lambda e: e.generate([[5]], max_tokens=0), "max_tokens is 1 or more, not 0"),
        (
            lambda e: e.generate([[5]], max_tokens="8"),
            "max_tokens is a whole .* not a text '8'",
        ),
        (lambda e: e.generate([[5]], max_tokens=8, stop_words="end"), "stop_words is a list of"),
        (
            lambda e: e.generate([[5]], max_tokens=8, stop_words=[5]),
            "one .* is a whole number 5",
        ),
        (lambda e: e.generate([[5]], max_tokens=8, sampling=0.5), "sampling is of SamplingOptions"),
        (lambda e: e.generate("Who?", max_tokens=8), "segments are a list of .* not a text 'Who"),
        (
            lambda e: e.generate(["Who?"], max_tokens=8),
            "sequence of integers, not a text 'Who",
        ),
        (
            lambda e: e.generate([5, 6], max_tokens=8),
            "of integers, not a whole number 5",
        ),
        (lambda e: e.generate([None], max_tokens=8), "flat sequence of integers, not null"),
        (lambda e: e.compile([5.5]), "flat sequence of integers, not a list"),
        (lambda e: e.compile([[5], [6, 7]]), "flat sequence of integers, not a list"),
        (lambda e: e.compile([2**70]), "flat sequence of integers, not a list"),
        (lambda e: e.compile([5], ""), r"a namespace is 1 to 64 .* not '' \(0 characters\)"),
        (lambda e: e.compile([5], "a b"), "a namespace is 1 to 64 .* not 'a b'"),
        (lambda e: e.compile([5], None), "a namespace is 1 to 64 .* not null"),
        (lambda e: e.compile([5], b"a"), "a namespace is 1 to 64 .* not bytes"),
    ],
)
def test_a_bad_request_is_refused_before_it_runs(engine, call, message):
    with pytest.raises(InvalidRequest, match=message):
        call(engine)


def test_the_end_token_ends_an_answer_without_text(engine):
    end = engine.facts.model.eos_token_ids[0]
    seeds = range(200)
    for seed in seeds:
        options = SamplingOptions(temperature=3.0, seed=seed)
        tokens = list(engine.generate([[5, 6]], max_tokens=40, sampling=options))
        if tokens[-1].finish_reason == "stop":
            assert tokens[-1].id == end
            assert all(token.id != end for token in tokens[:-1])
            return
    pytest.fail(f"no answer ended in {len(seeds)} seeds")


def test_an_answer_that_reaches_max_tokens_says_length(engine):
    tokens = list(engine.generate([[5, 6]], max_tokens=3))
    assert [token.finish_reason for token in tokens] == [None, None, "length"]


def test_a_stop_word_ends_the_answer_before_it(engine):
    whole = "".join(token.text for token in engine.generate([[5, 6]], max_tokens=30))
    word = whole[6:9]
    tokens = list(engine.generate([[5, 6]], max_tokens=30, stop_words=[word]))
    assert "".join(token.text for token in tokens) == whole[: whole.index(word)]
    assert tokens[-1].finish_reason == "stop"


def test_the_same_seed_gives_the_same_answer_whatever_else_is_in_the_batch(engine):
    request = GenerateRequest([[5, 6]], 20, sampling=SamplingOptions(temperature=1.0, seed=11))
    alone = [t.id for t in engine.results(engine.submit(request)) if hasattr(t, "id")]
    others = [engine.submit(GenerateRequest([random_ids(n, 30)], 20)) for n in range(3)]
    again = [t.id for t in engine.results(engine.submit(request)) if hasattr(t, "id")]
    assert again == alone
    for job in others:
        engine.cancel(job)


def test_a_chunk_of_another_namespace_has_another_key(engine):
    ids = random_ids(1, 20)
    assert engine.compile(ids, "a").key != engine.compile(ids, "b").key


def test_a_chunk_kept_on_disk_is_loaded_by_the_next_engine(tiny_engine_folder, tmp_path):
    ids = [random_ids(n, 40) for n in (1, 2)]
    first = Engine.open(tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path))
    expected = first.prefill([*map(first.compile, ids), [5, 6]]).logits
    second = Engine.open(tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path))
    result = second.prefill([*map(second.chunk, ids), [5, 6]])
    assert result.usage.compiled_tokens == 0
    assert result.usage.chunks_found == 2
    assert second.executor.counters.loaded_chunks == 2
    assert torch.equal(result.logits, expected)


def test_a_damaged_chunk_file_is_compiled_again_counted_and_never_linked(
    tiny_engine_folder, tmp_path
):
    ids = random_ids(1, 40)
    first = Engine.open(tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path))
    expected = first.prefill([first.compile(ids), [5, 6]]).logits
    (file,) = tmp_path.rglob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    second = Engine.open(tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path))
    result = second.prefill([second.chunk(ids), [5, 6]])
    assert torch.equal(result.logits, expected)
    assert result.usage.compiled_tokens == 40
    assert second.tiers.stats()[-1].failed_reads == {"checksum": 1}
    third = Engine.open(tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path))
    assert third.prefill([third.chunk(ids), [5, 6]]).usage.compiled_tokens == 0


def test_concurrent_requests_for_one_absent_chunk_compile_it_once(engine):
    chunk = engine.chunk(random_ids(1, 150))
    jobs = [engine.submit(GenerateRequest([chunk, [n + 5]], 2)) for n in range(4)]
    answers = [[t.id for t in engine.results(j) if hasattr(t, "id")] for j in jobs]
    assert engine.executor.counters.compiled_chunks == 1
    assert [len(answer) for answer in answers] == [2] * 4


def test_bfloat16_answers_close_to_float32(tiny_engine_folder):
    ids = [random_ids(n, 40) for n in (1, 2)]
    logits = []
    for dtype in ("float32", "bfloat16"):
        engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(dtype=dtype))
        logits.append(engine.prefill([*map(engine.compile, ids), [5, 6]]).logits)
    error = (logits[0] - logits[1]).norm() / logits[0].norm()
    # bfloat16 keeps 8 bits: 0.4 % a rounding, a few dozen of them in three layers of wide weights.
    assert 1e-4 < error < 0.1
