import numpy as np
import pytest

from legokv.errors import InvalidRequest
from legokv.sample import Sampler, SamplingOptions

LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


def draw(options, count=4000):
    sampler = Sampler(options)
    return np.bincount([sampler.next(LOGITS) for _ in range(count)], minlength=4) / count


def test_temperature_zero_takes_the_most_likely_token():
    assert Sampler(SamplingOptions()).next(LOGITS) == 1


def test_temperature_one_draws_by_the_model_s_probabilities():
    # 4,000 draws: three standard errors of a share of .4 are .023.
    assert draw(SamplingOptions(temperature=1, seed=1)) == pytest.approx(
        [0.1, 0.4, 0.2, 0.3], abs=0.03
    )


def test_a_high_temperature_flattens_and_a_low_one_sharpens():
    assert draw(SamplingOptions(temperature=100, seed=1)) == pytest.approx([0.25] * 4, abs=0.03)
    assert draw(SamplingOptions(temperature=0.05, seed=1))[1] > 0.95


def test_top_k_keeps_the_k_most_likely():
    assert draw(SamplingOptions(1, top_k=2, seed=1)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7], abs=0.03
    )


def test_top_p_keeps_the_smallest_set_that_reaches_p():
    assert draw(SamplingOptions(1, top_p=0.69, seed=1)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7], abs=0.03
    )
    assert draw(SamplingOptions(1, top_p=0.01, seed=1))[1] == 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def tokens(seed):
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed))
        return [sampler.next(LOGITS) for _ in range(50)]

    assert tokens(3) == tokens(3) != tokens(4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature is finite and 0 or more, not -0.5"),
        ({"temperature": float("nan")}, "temperature is finite and 0 or more, not nan"),
        ({"top_k": -1}, r"top_k is 0 \(all tokens\) or more, not -1"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p is above 0 and at most 1, not 1.5"),
        ({"seed": -7}, "seed is 0 or more, not -7"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_number(options, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingOptions(**options)
