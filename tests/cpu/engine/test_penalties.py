"""Penalties against their formulas written token by token."""

import numpy as np
import pytest

from legokv.engine.sampling import Penalties, PenaltyFactors, Sampler, SamplingOptions

VOCAB = 40
PROMPT = [3, 5, 5, 8, 13, 21]
ANSWER = [5, 2, 2, 2, 34]


def random_logits(seed=1):
    return (np.random.Generator(np.random.PCG64(seed)).standard_normal(VOCAB) * 4).astype(
        np.float32
    )


def reference(logits, repetition=1.0, frequency=0.0, presence=0.0):
    """The definitions, one token after another."""
    changed = []
    for token, given in enumerate(logits.tolist()):
        logit = given
        if token in PROMPT or token in ANSWER:
            logit = logit / repetition if logit > 0 else logit * repetition
        logit -= frequency * ANSWER.count(token)
        logit -= presence * (1 if token in ANSWER else 0)
        changed.append(logit)
    return changed


@pytest.mark.parametrize(
    "factors",
    [
        {"repetition": 1.3},
        {"repetition": 0.7},
        {"frequency": 0.5},
        {"frequency": -1.5},
        {"presence": 2.0},
        {"repetition": 1.2, "frequency": 0.3, "presence": -0.4},
    ],
)
def test_penalties_equal_their_formulas(factors):
    unchanged = {"repetition": 1.0, "frequency": 0.0, "presence": 0.0}
    penalties = Penalties(PenaltyFactors(**{**unchanged, **factors}), PROMPT)
    for token in ANSWER:
        penalties.count(token)
    logits = random_logits()
    before = logits.copy()
    lowered = penalties.lowered(logits)
    assert lowered == pytest.approx(reference(logits, **factors), abs=1e-12)
    assert (logits == before).all()
    assert not np.array_equal(lowered, logits)


def test_the_prompt_counts_for_repetition_only():
    logits = random_logits()
    fresh = Penalties(PenaltyFactors(1, 2.0, 2.0), PROMPT).lowered(logits)
    assert np.array_equal(fresh, logits)
    repeated = Penalties(PenaltyFactors(1.5, 0, 0), PROMPT).lowered(logits)
    assert np.flatnonzero(repeated != logits).tolist() == sorted(set(PROMPT))


def test_a_sampler_counts_what_it_draws_and_its_penalties_come_before_the_choice():
    logits = np.array([3.0, 2.9, 2.8], np.float32)
    greedy = Sampler(SamplingOptions(frequency_penalty=0.15))
    assert [greedy.next(logits) for _ in range(6)] == [0, 1, 0, 2, 1, 0]
    of_prompt = Sampler(SamplingOptions(repetition_penalty=2.0), prompt_ids=[0, 1])
    assert of_prompt.next(logits) == 2
    # Temperature 0 and top_k 1 see the lowered logits.
    narrow = Sampler(SamplingOptions(1.0, top_k=1, seed=1, presence_penalty=1.0))
    assert [narrow.next(logits) for _ in range(3)] == [0, 1, 2]
