"""Modes with drift: what is recomputed of a document moves the rest of it, for that request."""

import numpy as np
import pytest
import torch
from dense_link import dense_logits

from legokv import AnswerOptions, Engine, EngineSettings, SamplingOptions
from legokv.engine.request import GenerateRequest
from legokv.errors import InvalidRequest
from legokv.model.config import scoring_layers


def random_lists(seed, *lengths):
    dice = np.random.Generator(np.random.PCG64(seed))
    return [dice.integers(3, 384, length).tolist() for length in lengths]


@pytest.fixture
def engines(tiny_engine_folder):
    def engine(name="llama", **settings):
        settings = EngineSettings(**{"pool_tokens": 4096, **settings})
        return Engine.open(tiny_engine_folder(name), settings=settings)

    return engine


def positions_of(lengths, number):
    """Of document `number` of several that stand one after another."""
    start = sum(lengths[:number])
    return range(start, start + lengths[number])


@pytest.mark.parametrize("attention", ["torch", "native"])
@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen3"])
def test_with_drift_a_documents_others_move_as_its_recomputed_did(engines, name, attention):
    """Against a plain dense computation, of chunks that stand apart and of one in two parts."""
    engine = engines(name, attention=attention)
    lengths = (20, 30, 24, 40)
    *spans, tail, question = random_lists(16, *lengths, 11, 5)
    chunks = [engine.compile(ids) for ids in spans]
    chunks.append(engine.compile(tail, behind=chunks[-1]))
    mass = []
    dense_logits(engine, chunks, question, (), mass)
    scored = scoring_layers(len(mass))
    scores = torch.stack(mass[scored.start : scored.stop]).mean(0)[:125]
    documents = [positions_of((20, 30, 24, 51), n) for n in (1, 2, 3)]
    probes = [d.start + n * len(d) // 4 for d in documents for n in range(4)]
    left = [at for at in range(20, 125) if at not in probes]
    left.sort(key=lambda at: -scores[at])
    linked = engine.prefill([*chunks, question], mode="guided-drift", link_tokens=6)
    chosen = sorted([*probes, *left[:6]])
    assert linked.recomputed_tokens == 18
    wanted = dense_logits(engine, chunks, question, chosen, drifting=documents)
    torch.testing.assert_close(linked.logits, wanted, atol=1e-3, rtol=1e-3)
    without = dense_logits(engine, chunks, question, chosen)
    assert not torch.allclose(linked.logits, without, atol=1e-2)


def test_drift_leaves_the_chunks_as_they_are_for_others(engines):
    engine = engines()
    *spans, question = random_lists(17, 20, 30, 24, 5)
    chunks = [engine.compile(ids) for ids in spans]
    before = engine.prefill([*chunks, question], link_tokens=3).logits
    drifted = engine.prefill([*chunks, question], mode="guided-drift", link_tokens=6).logits
    assert torch.equal(engine.prefill([*chunks, question], link_tokens=3).logits, before)
    again = engine.prefill([*chunks, question], mode="guided-drift", link_tokens=6).logits
    assert torch.equal(again, drifted)
    assert engine.cache.num_leases == 0


def test_an_answer_with_drift_is_the_same_in_any_company_and_any_steps(engines):
    *spans, question = random_lists(18, 20, 90, 70, 5)
    answers = []
    for max_step_tokens in (29, 64, 512):
        engine = engines(max_step_tokens=max_step_tokens, pool_tokens=4096)
        chunks = [engine.compile(ids, rank=True) for ids in spans]
        request = GenerateRequest(
            [*chunks, question], 8, mode="guided-ranked-drift", link_tokens=12
        )
        others = [GenerateRequest([chunks[1], chunks[n], [5, 6 + n]], 8) for n in (0, 2)]
        jobs = [engine.submit(each) for each in (others[0], request, others[1])]
        answers.append([t.id for t in engine.results(jobs[1]) if hasattr(t, "id")])
    assert answers[0] == answers[1] == answers[2]
    alone = [token.id for token in engine.answer(request)]
    assert alone == answers[0]


def test_several_answers_with_drift_read_one_prompt(engines):
    engine = engines(pool_tokens=4096)
    *spans, question = random_lists(19, 20, 90, 70, 5)
    chunks = [engine.compile(ids) for ids in spans]

    def drawn(number):
        request = GenerateRequest(
            [*chunks, question],
            6,
            mode="guided-drift",
            sampling=SamplingOptions(temperature=0.8, seed=4),
            answering=AnswerOptions(num_return_sequences=number),
        )
        return [t.id for t in engine.answer(request) if t.sequence_index == 0]

    assert drawn(3) == drawn(1)


def test_without_enough_recomputed_of_it_a_document_does_not_drift(engines):
    engine = engines()
    *spans, question = random_lists(20, 20, 30, 24, 5)
    chunks = [engine.compile(ids) for ids in spans]
    for budget in (0, 1):
        drifted = engine.prefill([*chunks, question], mode="guided-drift", link_tokens=budget)
        plain = engine.prefill([*chunks, question], mode="spread", link_tokens=budget)
        assert torch.equal(drifted.logits, plain.logits)


def test_a_drifting_document_whose_tokens_no_step_has_room_for_is_refused_alone(engines):
    engine = engines(max_step_tokens=16)
    *spans, question = random_lists(21, 20, 90, 70, 5)
    chunks = [engine.compile(ids) for ids in spans]
    jobs = [
        engine.submit(GenerateRequest([*chunks, question], 4, mode=mode, recompute_percent=40.0))
        for mode in ("guided-drift", "guided")
    ]
    with pytest.raises(InvalidRequest, match=r"the \d\d tokens .* max_step_tokens allows 16"):
        list(engine.results(jobs[0]))
    assert len([t for t in engine.results(jobs[1]) if hasattr(t, "id")]) == 4
    assert engine.cache.num_leases == 0
