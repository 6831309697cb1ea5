import json
from pathlib import Path

import numpy as np
import pytest
import torch

from legokv.engine import draw as draw_module
from legokv.engine.sampling import MIN_TEMPERATURE, Draw, LogitChanges, Sampler, SamplingOptions
from legokv.errors import InvalidRequest
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.native_library import NativeLibrary

FIXED = json.loads((Path(__file__).parent / "drawn_tokens.json").read_text())
LOGITS = np.log(np.array([0.1, 0.4, 0.2, 0.3], np.float32))


@pytest.fixture(params=["torch", "library"], autouse=True)
def drawing(request, torch_threads):
    """All of these hold by both forms. On one thread, for rows are short here."""
    torch_threads(1)
    Form.library = None
    if request.param == "library":
        Form.library = NativeLibrary(build_native_library(print))


class Form:
    library: NativeLibrary | None = None


def draw_tokens(logits, draws):
    return draw_module.draw_tokens(logits, draws, Form.library)


def next_token(sampler, logits, banned=()):
    (token_id,) = draw_tokens(torch.from_numpy(logits)[None], [sampler.draw(0, banned)])
    sampler.count(token_id)
    return token_id


def random_logits(vocab, spread, seed):
    """Rounded, so that some are equal."""
    random = np.random.Generator(np.random.PCG64(seed))
    return (random.standard_normal(vocab) * spread).round(2).astype(np.float32)


def draw(options, count=4000):
    sampler = Sampler(options)
    return np.bincount([next_token(sampler, LOGITS) for _ in range(count)], minlength=4) / count


def test_temperature_zero_takes_the_most_likely_token():
    assert next_token(Sampler(SamplingOptions()), LOGITS) == 1


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


def test_min_p_keeps_what_is_at_least_that_share_as_likely_as_the_likeliest():
    # .3 is three quarters of .4, .2 is half of it.
    assert draw(SamplingOptions(1, min_p=0.74, seed=1)) == pytest.approx(
        [0, 4 / 7, 0, 3 / 7], abs=0.03
    )
    assert draw(SamplingOptions(1, min_p=0.76, seed=1))[1] == 1
    assert draw(SamplingOptions(1, min_p=1.0, seed=1))[1] == 1


def test_top_k_then_top_p_then_min_p_choose_among_what_the_one_before_left():
    # Of the three likeliest the first two have 7 / 9 of the share; of all four only .7.
    assert draw(SamplingOptions(1, top_k=3, top_p=0.75, seed=1))[2] == 0
    assert draw(SamplingOptions(1, top_p=0.75, seed=1))[2] > 0
    assert draw(SamplingOptions(1, top_k=3, top_p=0.75, min_p=0.9, seed=1))[1] == 1


def test_of_equally_likely_tokens_the_first_ids_are_kept():
    logits = np.zeros(50, np.float32)
    sampler = Sampler(SamplingOptions(1, top_k=7, seed=2))
    assert {next_token(sampler, logits) for _ in range(300)} == set(range(7))


def test_the_same_seeds_draw_the_tokens_that_they_drew_row_by_row():
    """The fixed values were drawn before rows went in batches, each by a sort of its own."""
    cases = [(size, options) for size in FIXED["sizes"] for options in FIXED["options"]]
    for number, ((vocab, spread), options) in enumerate(cases):
        prompt_ids = [1, 2, 2, 5, vocab - 1]
        sampler = Sampler(SamplingOptions(seed=17, **options), prompt_ids, number % 3)
        banned = (0, 3) if number % 2 else ()
        ids = [
            next_token(sampler, random_logits(vocab, spread, 1000 + step), banned)
            for step in range(10)
        ]
        assert ids == FIXED["ids"][number], (vocab, spread, options)


def test_a_row_s_token_is_the_same_in_any_company():
    vocab = 5000
    rows = np.stack([random_logits(vocab, 0.5 + row % 5, row) for row in range(40)])
    options = [SamplingOptions(seed=row, **FIXED["options"][row % 14]) for row in range(40)]
    random = np.random.Generator(np.random.PCG64(8))

    def asked(row):
        """Some with a penalty on this or that token, some with tokens banned or not allowed."""
        draw = Sampler(options[row], prompt_ids=[row, row + 1]).draw(row, [7] if row % 3 else ())
        if row % 4 == 1:
            object.__setattr__(draw, "allowed", rows[row] < row % 7)
        return draw

    alone = [draw_tokens(torch.from_numpy(rows), [asked(row)])[0] for row in range(40)]
    assert len(set(alone)) > 20
    for _ in range(5):
        company = random.permutation(40)[: random.integers(2, 40)].tolist()
        together = draw_tokens(torch.from_numpy(rows), [asked(row) for row in company])
        assert together == [alone[row] for row in company]


def kept_by_a_full_sort(logits, k, p):
    order = np.argsort(-logits, kind="stable")[: k or len(logits)]
    weights = np.exp(logits[order].astype(np.float64))
    return set(order[np.cumsum(weights) - weights < p * weights.sum()].tolist())


# Most of the probability lies in few tokens, in hundreds, or in thousands.
@pytest.mark.parametrize("spread", [6, 1, 0.3])
@pytest.mark.parametrize("most", [60, 250, 10000])
def test_candidates_are_those_of_a_full_sort(spread, most):
    """The ends of what can be drawn: a random number of 0, and of almost 1."""
    random = np.random.Generator(np.random.PCG64(3))
    for trial in range(10):
        logits = random_logits(10000, spread, trial).round(1)
        k, p = int(random.integers(1, most)), float(random.uniform(0.3, 1))
        options = SamplingOptions(1, top_k=k if trial % 3 else 0, top_p=p if trial % 4 else 1.0)
        kept = kept_by_a_full_sort(logits, options.top_k, options.top_p)
        draws = [Draw(0, options, LogitChanges(options), place) for place in (0.0, 1 - 2**-53)]
        assert draw_tokens(torch.from_numpy(logits)[None], draws) == [min(kept), max(kept)]


def test_one_random_number_is_used_for_each_token_whatever_is_kept():
    def rest(options):
        sampler = Sampler(options)
        for _ in range(5):
            next_token(sampler, LOGITS)
        return sampler._random.random()

    random = np.random.Generator(np.random.PCG64(9))
    sixth = [random.random() for _ in range(6)][-1]
    for options in ({}, {"top_k": 2}, {"top_p": 0.5}, {"min_p": 0.9}):
        assert rest(SamplingOptions(1, seed=9, **options)) == sixth


def test_logits_that_differ_by_rounding_draw_the_same_tokens():
    logits = np.random.Generator(np.random.PCG64(4)).standard_normal(500).astype(np.float32)
    options = SamplingOptions(temperature=0.8, top_k=40, seed=5)
    one, other = Sampler(options), Sampler(options)
    noise = np.random.Generator(np.random.PCG64(6))
    for _ in range(50):
        moved = logits + noise.standard_normal(500).astype(np.float32) * 1e-7
        assert next_token(one, logits) == next_token(other, moved)


def test_each_answer_of_a_request_has_its_own_numbers_and_the_first_those_of_one_alone():
    def tokens(**index):
        sampler = Sampler(SamplingOptions(temperature=1, seed=3), **index)
        return [next_token(sampler, LOGITS) for _ in range(50)]

    assert tokens() == tokens(index=0)
    assert len({tuple(tokens(index=n)) for n in range(4)}) == 4
    assert tokens(index=2) == tokens(index=2)


def test_a_banned_token_is_never_drawn():
    assert next_token(Sampler(SamplingOptions()), LOGITS, [1]) == 3
    sampler = Sampler(SamplingOptions(1, seed=1))
    assert {next_token(sampler, LOGITS, [1, 3]) for _ in range(200)} == {0, 2}


def test_the_least_temperature_is_greedy():
    assert draw(SamplingOptions(MIN_TEMPERATURE, seed=1), count=20)[1] == 1


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others():
    def tokens(seed):
        sampler = Sampler(SamplingOptions(temperature=1, seed=seed))
        return [next_token(sampler, LOGITS) for _ in range(50)]

    assert tokens(3) == tokens(3) != tokens(4)


def test_a_bound_that_came_as_float32_is_within_it():
    low = float(np.float32(MIN_TEMPERATURE))
    assert low < MIN_TEMPERATURE
    assert SamplingOptions(temperature=low, repetition_penalty=low).temperature == low


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.5}, "temperature is 0 to 100, not -0.5"),
        ({"temperature": 0.009}, "temperature above 0 is 0.01 to 100, not 0.009"),
        ({"temperature": 101}, "temperature is 0 to 100, not 101"),
        ({"temperature": "hot"}, "temperature is a number, not a text 'hot'"),
        ({"top_k": 1.5}, "top_k is a whole number, not a fraction 1.5"),
        ({"seed": True}, "seed is a whole number, not true or false"),
        ({"temperature": float("nan")}, "temperature is 0 to 100, not nan"),
        ({"top_k": -1}, "top_k is 0 or more, not -1"),
        ({"top_p": 0.0}, "top_p is above 0 and at most 1, not 0.0"),
        ({"top_p": 1.5}, "top_p is 0 to 1, not 1.5"),
        ({"seed": -7}, "seed is 0 or more, not -7"),
        ({"min_p": 1.25}, "min_p is 0 to 1, not 1.25"),
        ({"min_p": float("nan")}, "min_p is 0 to 1, not nan"),
        ({"repetition_penalty": 0.0}, "repetition_penalty is 0.01 to 100, not 0.0"),
        ({"repetition_penalty": 1e-320}, "repetition_penalty is 0.01 to 100, not 1e-320"),
        ({"presence_penalty": 2.5}, "presence_penalty is -2 to 2, not 2.5"),
        ({"frequency_penalty": -3.0}, "frequency_penalty is -2 to 2, not -3.0"),
        ({"logit_bias": [1]}, r"logit_bias is numbers by token id, not a list"),
        ({"logit_bias": {1: 101}}, "logit_bias of token 1 is -100 to 100, not 101"),
        ({"logit_bias": {"1": "a"}}, "logit_bias of token 1 is a number, not a text 'a'"),
        ({"logit_bias": {"x": 1}}, "a token id of logit_bias is a whole number, not a text 'x'"),
        ({"logit_bias": {-1: 1}}, "a token id of logit_bias is 0 or more, not -1"),
        ({"logit_bias": {1: 1, "1": 2}}, "logit_bias names a token twice"),
        ({"logit_bias": dict.fromkeys(range(1025), 1)}, "has 1025 tokens, at most 1024 are taken"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_number(options, message):
    with pytest.raises(InvalidRequest, match=message):
        SamplingOptions(**options)
