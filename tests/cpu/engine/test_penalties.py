"""Penalties against their formulas written token by token."""

import numpy as np
import pytest
import torch

from legokv.engine.draw import _changed, draw_tokens
from legokv.engine.sampling import Sampler, SamplingOptions

VOCAB = 40
PROMPT = [3, 5, 5, 8, 13, 21]
ANSWER = [5, 2, 2, 2, 34]


def random_logits(seed=1):
    return (np.random.Generator(np.random.PCG64(seed)).standard_normal(VOCAB) * 4).astype(
        np.float32
    )


def changed(logits, answer=(), **options):
    """The logits that the token behind `answer` is drawn from."""
    sampler = Sampler(SamplingOptions(**options), PROMPT)
    for token in answer:
        sampler.count(token)
    return _changed(torch.from_numpy(logits)[None], [sampler.draw()])[0].numpy()


def reference(
    logits, repetition_penalty=1.0, frequency_penalty=0.0, presence_penalty=0.0, logit_bias=()
):
    """The definitions, one token after another."""
    changed = []
    repetition, frequency, presence = repetition_penalty, frequency_penalty, presence_penalty
    for token, given in enumerate(logits.tolist()):
        logit = given + dict(logit_bias).get(token, 0.0)
        if token in PROMPT or token in ANSWER:
            logit = logit / repetition if logit > 0 else logit * repetition
        logit -= frequency * ANSWER.count(token)
        logit -= presence * (1 if token in ANSWER else 0)
        changed.append(logit)
    return changed


BIAS = {5: 3.5, 7: -100, 2: 0.25}


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.3},
        {"repetition_penalty": 0.7},
        {"frequency_penalty": 0.5},
        {"frequency_penalty": -1.5},
        {"presence_penalty": 2.0},
        {"repetition_penalty": 1.2, "frequency_penalty": 0.3, "presence_penalty": -0.4},
        {"logit_bias": BIAS},
        {"logit_bias": BIAS, "repetition_penalty": 1.2, "frequency_penalty": 0.3},
    ],
)
def test_bias_and_penalties_equal_their_formulas(options):
    logits = random_logits()
    before = logits.copy()
    found = changed(logits, ANSWER, **options)
    assert found == pytest.approx(reference(logits, **options), abs=1e-12)
    assert (logits == before).all()
    assert not np.array_equal(found, logits)


def test_the_prompt_counts_for_repetition_only():
    logits = random_logits()
    fresh = changed(logits, frequency_penalty=2.0, presence_penalty=2.0)
    assert np.array_equal(fresh, logits)
    repeated = changed(logits, repetition_penalty=1.5)
    assert np.flatnonzero(repeated != logits).tolist() == sorted(set(PROMPT))


def next_token(sampler, logits):
    (token_id,) = draw_tokens(torch.from_numpy(logits)[None], [sampler.draw()])
    sampler.count(token_id)
    return token_id


def test_a_bias_of_minus_100_bans_a_token_and_one_of_100_chooses_it():
    logits = np.array([3.0, 2.9, 2.8], np.float32)
    assert next_token(Sampler(SamplingOptions(logit_bias={0: -100})), logits) == 1
    drawn = Sampler(SamplingOptions(1.0, seed=2, logit_bias={"2": 100}))
    assert {next_token(drawn, logits) for _ in range(50)} == {2}


def test_a_sampler_counts_what_it_draws_and_its_penalties_come_before_the_choice():
    logits = np.array([3.0, 2.9, 2.8], np.float32)
    greedy = Sampler(SamplingOptions(frequency_penalty=0.15))
    assert [next_token(greedy, logits) for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    of_prompt = Sampler(SamplingOptions(repetition_penalty=2.0), prompt_ids=[0, 1])
    assert next_token(of_prompt, logits) == 2
    # Temperature 0 and top_k 1 see the lowered logits.
    narrow = Sampler(SamplingOptions(1.0, top_k=1, seed=1, presence_penalty=1.0))
    assert [next_token(narrow, logits) for _ in range(3)] == [0, 1, 2]
