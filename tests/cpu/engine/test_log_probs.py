"""Log-probabilities against torch's own log_softmax."""

import numpy as np
import pytest
import torch

from legokv.engine.sampling import token_log_probs


def test_log_probs_are_log_softmax_of_the_logits_and_the_likeliest_come_first():
    logits = np.random.Generator(np.random.PCG64(1)).standard_normal(900).astype(np.float32) * 5
    expected = torch.log_softmax(torch.from_numpy(logits).double(), -1)
    found = token_log_probs(logits, 17, 6)
    assert found.log_prob == pytest.approx(float(expected[17]), abs=1e-9)
    values, ids = expected.topk(6)
    assert [token for token, _ in found.top] == ids.tolist()
    assert [value for _, value in found.top] == pytest.approx(values.tolist(), abs=1e-9)


def test_no_alternatives_are_given_unless_asked_for_and_never_more_than_there_are():
    logits = np.array([1.0, 2.0, 2.0], np.float32)
    assert token_log_probs(logits, 0, 0).top == ()
    assert [token for token, _ in token_log_probs(logits, 0, 9).top] == [1, 2, 0]


def test_logits_far_from_zero_do_not_overflow():
    found = token_log_probs(np.array([3e4, 3e4, -3e4], np.float32), 2, 1)
    assert found.log_prob == pytest.approx(-6e4 - np.log(2))
    assert found.top[0][1] == pytest.approx(-np.log(2))
