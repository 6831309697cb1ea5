"""Several answers, log-probabilities, least lengths and time limits of the library's requests."""

import pytest
import torch
from texts import random_ids

from legokv import AnswerOptions, Engine, EngineSettings, GenerateRequest, SamplingOptions
from legokv.engine.draw import draw_tokens
from legokv.engine.request import Finished, Token
from legokv.engine.sampling import Sampler
from legokv.errors import InvalidRequest, LegokvError, PoolFull, TimedOut

DRAWN = SamplingOptions(temperature=0.9, top_k=30, seed=5)
PENALISED = SamplingOptions(
    temperature=0.9,
    min_p=0.02,
    seed=6,
    repetition_penalty=1.3,
    frequency_penalty=0.2,
    presence_penalty=0.4,
)


@pytest.fixture
def engine(tiny_engine_folder):
    return Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=1024, max_step_tokens=64)
    )


def answers(engine, request):
    """The token ids of each answer."""
    found = [[] for _ in range(request.answering.num_return_sequences)]
    for token in engine.answer(request):
        found[token.sequence_index].append(token.id)
    return found


def drawn_alone(engine, segments, options, index, max_tokens):
    """One answer, each token drawn after everything before it was computed anew."""
    prompt = [int(t) for s in segments for t in getattr(s, "token_ids", s)]
    sampler = Sampler(options, prompt, index)
    ids = []
    while len(ids) < max_tokens and not set(ids) & set(engine.facts.model.eos_token_ids):
        logits = engine.prefill([*segments[:-1], segments[-1] + ids]).logits
        ids += draw_tokens(logits[None], [sampler.draw()])
        sampler.count(ids[-1])
    return ids


# Questions that end inside a page, with it, and of one token; and what follows passes a page.
@pytest.mark.parametrize("question_len", [1, 13, 16, 35])
@pytest.mark.parametrize("options", [DRAWN, PENALISED], ids=["drawn", "penalised"])
def test_several_answers_are_those_of_single_requests_with_each_one_s_seed(
    engine, question_len, options
):
    segments = [engine.compile(random_ids(1, 40)), random_ids(2, question_len)]
    request = GenerateRequest(
        segments, 18, sampling=options, answering=AnswerOptions(num_return_sequences=3)
    )
    found = answers(engine, request)
    assert found == [drawn_alone(engine, segments, options, n, 18) for n in range(3)]
    assert len({tuple(answer) for answer in found}) == 3
    assert answers(engine, GenerateRequest(segments, 18, sampling=options)) == found[:1]


def test_several_answers_beside_other_requests_are_those_without_them(engine):
    request = GenerateRequest(
        [random_ids(1, 21)], 20, sampling=DRAWN, answering=AnswerOptions(num_return_sequences=4)
    )
    alone = answers(engine, request)
    others = [engine.submit(GenerateRequest([random_ids(n, 30)], 20)) for n in range(3)]
    assert answers(engine, request) == alone
    for job in others:
        engine.cancel(job)


def test_each_answer_ends_by_itself_and_the_request_with_the_last(engine):
    request = GenerateRequest(
        [[5, 6]],
        60,
        sampling=SamplingOptions(temperature=2.0, seed=3),
        stop_words=("e", "t"),
        answering=AnswerOptions(num_return_sequences=5),
    )
    events = list(engine.results(engine.submit(request)))
    tokens = [event for event in events if isinstance(event, Token)]
    ends = [token for token in tokens if token.finish_reason is not None]
    assert sorted(token.sequence_index for token in ends) == list(range(5))
    for end in ends:
        own = [token for token in tokens if token.sequence_index == end.sequence_index]
        assert own[-1] is end
    assert len({tokens.index(end) for end in ends}) > 1
    assert isinstance(events[-1], Finished)
    assert events[-1].usage.generated_tokens == len(tokens)


def test_answers_share_the_prompt_s_pages_and_give_their_own_back(engine):
    used = engine.cache.pool.num_used
    # 40 prompt tokens in 3 pages, the last half full; 30 more reach into two pages of their own.
    request = GenerateRequest(
        [random_ids(1, 40)], 30, sampling=DRAWN, answering=AnswerOptions(num_return_sequences=4)
    )
    job = engine.submit(request)
    while not job.usage.generated_tokens:
        engine.step()
    assert engine.cache.pool.num_used - used == 5 + 3 * 3
    engine.cancel(job)
    engine.step()
    assert engine.cache.pool.num_used == used
    answers(engine, request)
    assert engine.cache.pool.num_used == used


def test_more_answers_than_the_pool_has_pages_for_are_refused_with_the_numbers(engine):
    many = AnswerOptions(num_return_sequences=40)
    with pytest.raises(PoolFull, match="the request needs 122 pages of 16 tokens, the pool has 64"):
        engine.answer(GenerateRequest([random_ids(1, 40)], 30, sampling=DRAWN, answering=many))
    one = GenerateRequest([random_ids(1, 40)], 1, sampling=DRAWN, answering=many)
    assert [len(answer) for answer in answers(engine, one)] == [1] * 40


def test_a_failed_step_ends_a_request_of_several_answers_once(engine, monkeypatch):
    used = engine.cache.pool.num_used
    request = GenerateRequest(
        [[5, 6]], 30, sampling=DRAWN, answering=AnswerOptions(num_return_sequences=3)
    )
    job = engine.submit(request)
    while not job.usage.generated_tokens:
        engine.step()

    def fail(batch):
        raise RuntimeError("no memory")

    with monkeypatch.context() as patched:
        patched.setattr(engine.runner, "run", fail)
        engine.step()
    errors = [e for e in drained(job) if isinstance(e, LegokvError)]
    assert [str(error) for error in errors] == ["a step failed: RuntimeError: no memory"]
    assert engine.cache.pool.num_used == used
    assert len(answers(engine, request)) == 3


def test_log_probs_are_log_softmax_of_the_full_logits_before_temperature_and_penalties(engine):
    request = GenerateRequest(
        [random_ids(1, 20)],
        8,
        sampling=PENALISED,
        answering=AnswerOptions(return_log_probs=True, num_top_log_probs=4),
    )
    so_far = random_ids(1, 20)
    for token in engine.answer(request):
        expected = torch.log_softmax(engine.prefill([so_far]).logits.double(), -1)
        assert token.log_probs.log_prob == pytest.approx(float(expected[token.id]), abs=1e-4)
        values, ids = expected.topk(4)
        assert [top_id for top_id, _ in token.log_probs.top] == ids.tolist()
        assert [p for _, p in token.log_probs.top] == pytest.approx(values.tolist(), abs=1e-4)
        so_far.append(token.id)
    assert len(so_far) == 28


def test_no_end_token_is_drawn_before_min_tokens(engine):
    def answer(seed, **options):
        sampling = SamplingOptions(temperature=3.0, seed=seed)
        return list(engine.answer(GenerateRequest([[5, 6]], 60, sampling=sampling, **options)))

    ended = ((seed, answer(seed)) for seed in range(200))
    seed, early = next(one for one in ended if one[1][-1].finish_reason == "stop")
    least = len(early) + 5
    later = answer(seed, answering=AnswerOptions(min_tokens=least))
    assert len(later) >= least
    end = engine.facts.model.eos_token_ids[0]
    assert all(token.id != end for token in later[:least])


def test_a_stop_word_within_min_tokens_is_text_like_any_other(engine):
    whole = list(engine.generate([[5, 6]], max_tokens=30))
    text = "".join(token.text for token in whole)
    word = text[6:9]
    again = [engine.generate([[5, 6]], max_tokens=n) for n in range(1, 31)]
    num_before = next(
        n for n, tokens in enumerate(again, 1) if word in "".join(t.text for t in tokens)
    )
    request = GenerateRequest(
        [[5, 6]], 30, stop_words=(word,), answering=AnswerOptions(min_tokens=num_before)
    )
    answer = list(engine.answer(request))
    assert len(answer) >= num_before
    assert word in "".join(token.text for token in answer)


def test_a_stop_token_ends_an_answer_as_the_models_own_end_does(engine):
    whole = list(engine.generate([[5, 6]], max_tokens=30))
    stop = whole[7].id
    first = next(n for n, token in enumerate(whole) if token.id == stop)
    ends = AnswerOptions(stop_token_ids=(stop,))
    answer = list(engine.answer(GenerateRequest([[5, 6]], 30, answering=ends)))
    assert [token.id for token in answer] == [token.id for token in whole[: first + 1]]
    assert answer[-1].finish_reason == "stop"
    ids = [token.id for token in whole[:first]]
    assert "".join(token.text for token in answer) == engine.tokenizer.decode(ids)


def test_no_stop_token_is_drawn_before_min_tokens(engine):
    stop = next(iter(engine.generate([[5, 6]], max_tokens=1))).id
    ends = AnswerOptions(stop_token_ids=(stop,), min_tokens=5)
    answer = list(engine.answer(GenerateRequest([[5, 6]], 30, answering=ends)))
    assert all(token.id != stop for token in answer[:5])


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ((5, 384), "stop_token_ids has 384: token ids lie between 0 and 383"),
        ((0.5,), "stop_token_ids is a whole number"),
        (5, "stop_token_ids is a list of whole numbers"),
        ((5,) * 129, "stop_token_ids has 129 ids, at most 128"),
    ],
)
def test_stop_tokens_that_are_none_are_refused(engine, ids, reason):
    with pytest.raises(InvalidRequest, match=reason):
        engine.answer(GenerateRequest([[5, 6]], 3, answering=AnswerOptions(stop_token_ids=ids)))


def drained(job):
    events = []
    while not job.queue.empty():
        events.append(job.queue.get())
    return events


def test_an_answer_past_its_time_ends_with_its_next_token_and_frees_its_pages(engine):
    used = engine.cache.pool.num_used
    answering = AnswerOptions(timeout_seconds=600.0, num_return_sequences=2)
    job = engine.submit(GenerateRequest([[5, 6]], 300, sampling=DRAWN, answering=answering))
    while not job.usage.generated_tokens:
        engine.step()
    job.submitted_at -= 600
    engine.step()
    *tokens, finished = drained(job)
    assert [token.finish_reason for token in tokens[-2:]] == ["timeout", "timeout"]
    assert finished.finish_reason == "timeout"
    assert finished.usage.generated_tokens == len(tokens) < 600
    assert engine.cache.pool.num_used == used


def test_a_request_that_waited_past_its_time_fails_and_its_neighbour_goes_on(tiny_engine_folder):
    engine = Engine.open(tiny_engine_folder(), settings=EngineSettings(pool_tokens=16 * 6))
    prompt = random_ids(1, 40)
    alone = answers(engine, GenerateRequest([prompt], 30))
    first = engine.submit(GenerateRequest([prompt], 30))
    engine.step()
    limit = AnswerOptions(timeout_seconds=604799.9)
    waiting, behind = (
        engine.submit(GenerateRequest([prompt], 30, answering=limit)) for _ in range(2)
    )
    engine.step()
    late = engine.submit(GenerateRequest([prompt], 30, answering=limit))
    for job in (waiting, behind, late):
        job.patience_seconds = 0.0
    engine.step()
    for job, waited in (
        (waiting, "it waited for pages"),
        (behind, "it waited in line behind others"),
        (late, "a step of other requests was under way"),
    ):
        said = f"40 prompt tokens within timeout_seconds 604799.9: {waited}; allow more"
        with pytest.raises(TimedOut, match=said):
            list(engine.results(job))
    assert [[e.id for e in engine.results(first) if isinstance(e, Token)]] == alone
    assert engine.cache.pool.num_used == 0


def test_a_prompt_past_its_time_is_computed_no_further_and_frees_its_pages(tiny_engine_folder):
    engine = Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=1024, max_step_tokens=4)
    )
    limit = AnswerOptions(timeout_seconds=600.0)
    job = engine.submit(GenerateRequest([random_ids(1, 200)], 3, answering=limit))
    engine.step()
    assert engine.cache.pool.num_used > 0
    job.submitted_at -= 600
    engine.step()
    assert engine.cache.pool.num_used == 0
    with pytest.raises(TimedOut, match=r"200 prompt tokens .* the prompt was under way"):
        list(engine.results(job))
    assert not engine.step()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_tokens": -1}, "min_tokens is 0 or more, not -1"),
        ({"num_return_sequences": 0}, "num_return_sequences is 1 to 128, not 0"),
        ({"num_return_sequences": 129}, "num_return_sequences is 1 to 128, not 129"),
        (
            {"return_log_probs": True, "num_top_log_probs": 21},
            "num_top_log_probs is 0 to 20, not 21",
        ),
        ({"num_top_log_probs": 3}, "num_top_log_probs is 3 without return_log_probs"),
        ({"timeout_seconds": 0.0}, "timeout_seconds is above 0, not 0.0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds is 0 to 604800, not nan"),
        ({"timeout_seconds": 1e6}, "timeout_seconds is 0 to 604800, not 1000000.0"),
        ({"timeout_seconds": "1"}, "timeout_seconds is a number, not a text '1'"),
        ({"min_tokens": 1.0}, "min_tokens is a whole number, not a fraction 1.0"),
        ({"return_log_probs": 1}, "return_log_probs is true or false, not a whole number 1"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_number(options, message):
    with pytest.raises(InvalidRequest, match=message):
        AnswerOptions(**options)


@pytest.mark.parametrize(
    ("max_tokens", "temperature", "options", "message"),
    [
        (4, 0.0, {"min_tokens": 5}, "min_tokens 5 is above max_tokens 4"),
        (4, 0.0, {"num_return_sequences": 2}, "num_return_sequences 2 needs a temperature above 0"),
        (0, 1.0, {"num_return_sequences": 2}, "max_tokens of 1 or more, not 1.0 and 0"),
    ],
)
def test_options_that_contradict_the_request_are_refused_with_the_numbers(
    max_tokens, temperature, options, message
):
    sampling = SamplingOptions(temperature)
    with pytest.raises(InvalidRequest, match=message):
        GenerateRequest([[5]], max_tokens, sampling=sampling, answering=AnswerOptions(**options))
