"""Tokens drawn by the library: those of torch's form, in each of its builds."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from legokv.engine import draw as draw_module
from legokv.engine.draw import draw_tokens
from legokv.engine.native_draw import drawn_rows
from legokv.engine.sampling import Draw, LogitChanges, SamplingOptions
from legokv.errors import LaunchRefused, NotFinite
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.native_library import InstructionSet, NativeLibrary

BUILDS = [each for each in InstructionSet if not each.bfloat16_only]


@pytest.fixture
def library(torch_threads):
    torch_threads(1)
    return NativeLibrary(build_native_library(print))


def rounded_logits(vocab, spread, seed):
    """Rounded, so that some are equal."""
    random = np.random.Generator(np.random.PCG64(seed))
    return (random.standard_normal((2, vocab)) * spread).round(2).astype(np.float32)


def drawn_options(random):
    return SamplingOptions(
        temperature=random.choice([0, 0.3, 1, 50]),
        top_k=int(random.choice([0, 1, 7, 300, 2000])),
        top_p=random.choice([1, 0.9, 0.3]),
        min_p=random.choice([0, 0.05, 1]),
        repetition_penalty=random.choice([1, 1.2]),
        frequency_penalty=random.choice([0, 0.3]),
        logit_bias={4: -100.0, 2: 3.0} if random.random() < 0.3 else {},
    )


def changes_of(options, random, vocab):
    """Of a prompt and an answer: the answer's tokens stand behind the prompt's, in any order."""
    changes = LogitChanges(options, random.integers(0, vocab, 40).tolist())
    for token_id in random.integers(0, vocab, 10).tolist():
        changes.count(token_id)
    return changes


def mask_of(trial, random, vocab):
    """Of a grammar: None, a few tokens, or almost all."""
    share = (None, 0.01, 0.99)[trial % 3]
    if share is None:
        return None
    allowed = random.random(vocab) < share
    allowed[1] = True
    return allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("instruction_set", BUILDS)
def test_each_build_of_the_library_draws_what_the_reference_draws(
    instruction_set, dtype, monkeypatch, library
):
    if instruction_set and not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    drawn = partial(drawn_rows, instruction_set=instruction_set)
    monkeypatch.setattr(draw_module, "drawn_rows", drawn)
    random = np.random.Generator(np.random.PCG64(12))
    for trial in range(150):
        vocab = (5, 63, 64, 65, 1000, 5000, 17000)[trial % 7]
        spread = random.choice([0, 0.1, 1, 3, 10])
        logits = torch.from_numpy(rounded_logits(vocab, spread, trial)).to(dtype)
        options = drawn_options(random)
        changes = changes_of(options, random, vocab)
        allowed = mask_of(trial // 7, random, vocab)
        banned = [0, 3] if trial % 3 and allowed is None else []
        places = [float(random.random()), random.choice([0.0, 1 - 2**-30])]
        draws = [
            Draw(row, options, changes, place, banned, allowed) for row, place in enumerate(places)
        ]
        found = draw_tokens(logits, draws, library)
        assert found == draw_tokens(logits.float(), draws), (vocab, spread, options)


def hard_rows(vocab, seed):
    """Rows of many shapes: flat, peaked, of few values, in a vocabulary's order, sorted, huge."""
    random = np.random.Generator(np.random.PCG64(seed))
    some = random.standard_normal((7, vocab)).astype(np.float32)
    some[0] *= 0.01
    some[1] *= 6
    some[2] = some[2].round(0)
    some[3] -= 2 * np.log(np.arange(1, vocab + 1))
    some[4] = np.sort(some[4] * 3)
    some[5] = 0
    some[5, :: vocab // 7] = 12
    some[6] *= 1e30
    return torch.from_numpy(some)


def test_near_weights_choose_the_tokens_that_exact_weights_choose(library):
    """700 rows: whatever the near weights cannot decide is left to the exact ones."""
    random, num_rows = np.random.Generator(np.random.PCG64(21)), 0
    for trial in range(102):
        vocab = (30011, 49152, 9000)[trial % 3]
        logits = hard_rows(vocab, trial)
        options = [drawn_options(random) for _ in logits]
        draws = [
            Draw(row, each, changes_of(each, random, vocab), float(random.random()))
            for row, each in enumerate(options)
        ]
        exact = drawn_rows(library, logits, draws, is_exact=True)
        assert drawn_rows(library, logits, draws) == exact, (trial, options)
        num_rows += len(draws)
    assert num_rows > 700


def odd_rows(vocab, seed):
    """Next to nothing, zeros of both signs, one of many alone, steps, and the ends of float32."""
    random = np.random.Generator(np.random.PCG64(seed))
    some = random.standard_normal((7, vocab)).astype(np.float32)
    some[0] *= np.float32(1e-40)
    some[1] = np.where(some[1] > 0, 0.0, -0.0)
    some[2:4] = -3e38
    some[2, vocab // 2] = 1
    some[3, : vocab // 3] = 3.2e38
    some[4] = -50
    some[4, vocab // 3 :] = 0.5
    some[5] = random.integers(-2, 3, vocab) * np.float32(1.4e-45)
    some[6] = 1e6 + 10 * some[6]
    return torch.from_numpy(some)


@pytest.mark.parametrize("instruction_set", BUILDS)
def test_each_build_draws_of_odd_rows_what_its_exact_weights_choose(instruction_set, library):
    """With masks, bans and changes that move most tokens, across blocks' ends and the row's."""
    if instruction_set and not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    random = np.random.Generator(np.random.PCG64(5))
    for trial in range(40):
        vocab = (9, 64, 65, 127, 700, 3001)[trial % 6]
        logits = odd_rows(vocab, trial)
        draws = []
        for row in range(len(logits)):
            options = drawn_options(random)
            changes = LogitChanges(options, random.integers(0, vocab, vocab * (row % 2)).tolist())
            allowed = mask_of(row, random, vocab)
            banned = random.integers(0, vocab, 5).tolist() if allowed is None else []
            draws.append(Draw(row, options, changes, float(random.random()), banned, allowed))
        drawn = partial(drawn_rows, library, logits, draws, instruction_set)
        assert drawn() == drawn(is_exact=True), (trial, [draw.options for draw in draws])


@pytest.mark.parametrize("num_changed", [0, 1, 3, 4, 5, 11, 1000])
def test_top_k_finds_its_last_where_fewer_blocks_than_it_have_a_token_that_may_come(
    library, num_changed
):
    """Of 47 blocks three, and tokens that are changed: fewer than top_k, as many, and more."""
    logits = torch.from_numpy(rounded_logits(3001, 1, 8))
    changed = range(0, 3 * num_changed, 3)
    allowed = np.zeros(3001, np.bool_)
    allowed[[5, 77, 2900, *changed]] = True
    options = SamplingOptions(temperature=1.0, top_k=7, repetition_penalty=1.2)
    changes = LogitChanges(options, list(changed))
    draws = [Draw(0, options, changes, place, (), allowed) for place in (0.0, 0.4, 0.9)]
    found = drawn_rows(library, logits, draws)
    assert found == drawn_rows(library, logits, draws, is_exact=True)
    assert allowed[found].all()


def test_what_lies_on_an_edge_is_decided_by_the_exact_weights(library):
    """Shares that end where top_p, min_p or the random number stands, to the last bit."""
    logits = torch.zeros(1, 1000)
    for kwargs, place, token_id in (
        ({"temperature": 1.0}, 0.25, 250),
        ({"temperature": 1.0}, np.nextafter(0.25, 0), 249),
        ({"temperature": 1.0, "top_p": 0.5}, 1 - 2**-53, 499),
        ({"temperature": 1.0, "min_p": 1.0}, 0.5, 500),
        ({"temperature": 1.0, "top_k": 600}, 0.5, 300),
    ):
        options = SamplingOptions(**kwargs)
        draw = Draw(0, options, LogitChanges(options), place)
        assert drawn_rows(library, logits, [draw]) == [token_id], (kwargs, place)
        assert draw_tokens(logits, [draw]) == [token_id], (kwargs, place)


def stepped_rows(count, vocab):
    """Logits of three values each, falling: what rounds a weight rounds a third of them."""
    random = np.random.Generator(np.random.PCG64(31))
    values = np.sort(random.standard_normal((count, 3)))[:, ::-1]
    return values[:, np.arange(vocab) * 3 // vocab].astype(np.float32)


@pytest.mark.parametrize("instruction_set", BUILDS)
def test_a_token_or_top_p_that_ends_next_to_its_share_is_decided_by_weights_that_can_tell(
    instruction_set, library
):
    """By a hundred-millionth of the sum, which float32 weights do not tell."""
    if instruction_set and not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    rows, all_tokens = stepped_rows(300, 90), SamplingOptions(temperature=1.0)
    logits, no_changes = torch.from_numpy(rows), LogitChanges(all_tokens)
    shares = np.exp(rows.astype(np.float64) - rows.max(1, keepdims=True))
    shares = shares.cumsum(1) / shares.sum(1, keepdims=True)
    for step in (-1e-8, -3e-9, 3e-9, 1e-8):
        draws, wanted = [], []
        for row, share in enumerate(shares):
            last = 5 + row % 80
            draws.append(Draw(row, all_tokens, no_changes, share[last] + step))
            top_p = SamplingOptions(temperature=1.0, top_p=share[last] + step)
            kept = last + (step > 0)
            inside = (share[kept - 1] + share[kept]) / 2 / share[kept]
            draws.append(Draw(row, top_p, no_changes, inside))
            wanted += [kept, kept]
        assert drawn_rows(library, logits, draws, instruction_set) == wanted, step
        assert drawn_rows(library, logits, draws, instruction_set, is_exact=True) == wanted, step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_min_p_and_top_p_keep_the_same_by_near_weights_wherever_each_ends(dtype, library):
    """Of flat and peaked rows, also with changes and a top_k that keeps most: 1,280 draws."""
    logits = torch.from_numpy(hard_rows(9000, 17)[[0, 1, 3, 6]].numpy()).to(dtype)
    random = np.random.Generator(np.random.PCG64(18))
    draws = []
    for top_p in (0.1, 0.5, 0.9, 0.999):
        for min_p in (0.001, 0.2, 0.7, 0.9, 0.97):
            for top_k, penalty in ((0, 1.0), (7000, 1.0), (0, 1.3), (7000, 1.3)):
                for temperature in (0.7, 30.0):
                    options = SamplingOptions(
                        temperature, top_k, top_p, min_p=min_p, repetition_penalty=penalty
                    )
                    changes = changes_of(options, random, 9000)
                    draws += [
                        Draw(row, options, changes, float(random.random()))
                        for row in range(len(logits))
                        for _ in range(2)
                    ]
    assert len(draws) == 1280
    assert drawn_rows(library, logits, draws) == drawn_rows(library, logits, draws, is_exact=True)


@pytest.mark.parametrize("top_p", [1.0, 0.999])
@pytest.mark.parametrize("is_changed", [False, True])
def test_a_logit_where_min_p_ends_is_kept_if_the_exact_weights_keep_it(library, is_changed, top_p):
    """By the last bits of min_p, which the near weights do not tell apart."""
    value = float(np.float32(-0.7))
    logits = torch.zeros(1, 100)
    logits[0, 20] = 0.0 if is_changed else value
    bias = {20: value} if is_changed else {}
    drawn = []
    for step in range(-4, 5):
        min_p = math.exp(value) + step * 2**-53
        options = SamplingOptions(temperature=1.0, top_p=top_p, min_p=min_p, logit_bias=bias)
        draw = Draw(0, options, LogitChanges(options), 20.25 / 99.5)
        drawn += drawn_rows(library, logits, [draw])
        assert drawn[-1:] == drawn_rows(library, logits, [draw], is_exact=True), step
    assert sorted(set(drawn)) == [20, 21]
    assert drawn == sorted(drawn)


@pytest.mark.parametrize("bias", [1e-310, -1e-310, 5e-324, 1e-305, 1e-300])
@pytest.mark.parametrize("kwargs", [{"top_p": 0.5}, {"top_k": 3}, {"top_k": 60, "top_p": 0.5}])
def test_logits_that_differ_by_next_to_nothing_are_told_apart(library, kwargs, bias):
    """By a logit's last bits below the smallest whole float64, as a bias of JSON can have it."""
    logits, changed = torch.zeros(1, 100), {20: bias, 70: bias / 2}
    options = SamplingOptions(temperature=1.0, logit_bias=changed, **kwargs)
    for place in (0.0, 0.3, 0.77):
        draw = Draw(0, options, LogitChanges(options), place)
        wanted = draw_tokens(logits, [draw])
        assert draw_tokens(logits, [draw], library) == wanted, place
        assert drawn_rows(library, logits, [draw], is_exact=True) == wanted, place


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_row_s_token_is_the_same_alone_and_in_company_on_any_number_of_threads(
    torch_threads, num_threads
):
    library = NativeLibrary(build_native_library(print))
    # Of 469 blocks: the search for the likeliest goes on to another number of them.
    logits = torch.from_numpy(np.concatenate([rounded_logits(30001, 1, n) for n in range(6)]))
    places = np.random.Generator(np.random.PCG64(7)).random(len(logits))
    for top_k, top_p, min_p in ((0, 1, 0), (450, 0.9, 0), (0, 0.95, 0.01), (7, 1, 0)):
        options = SamplingOptions(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p)
        changes = LogitChanges(options, [])
        draws = [Draw(row, options, changes, place, []) for row, place in enumerate(places)]
        torch_threads(num_threads)
        found = draw_tokens(logits, draws, library)
        torch_threads(1)
        alone = [draw_tokens(logits, [draw], library)[0] for draw in draws]
        assert found == alone == draw_tokens(logits, draws), (top_k, top_p, min_p)


def test_what_is_no_number_ends_its_row_alone_also_where_it_is_banned_or_not_allowed(library):
    logits = torch.zeros(4, 300)
    logits[0, 299], logits[1, 5], logits[2, 0] = torch.nan, torch.inf, -torch.inf
    options = SamplingOptions(temperature=1.0)
    allowed = np.ones(300, np.bool_)
    allowed[5] = False
    draws = [
        Draw(0, options, LogitChanges(options), 0.5, [299]),
        Draw(1, options, LogitChanges(options), 0.5, (), allowed),
        Draw(2, options, LogitChanges(options), 0.5),
        Draw(3, options, LogitChanges(options), 0.5),
    ]
    for each in (library, None):
        *errors, token_id = draw_tokens(logits, draws, each)
        assert token_id == 150
        assert [type(error) for error in errors] == [NotFinite] * 3
        assert "of 300 logits for the next token 1 are NaN and 0 infinite" in str(errors[0])


class Calls(TorchDispatchMode):
    """Counts what torch computes or copies."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


def test_logits_are_drawn_from_where_they_lie_and_none_is_copied(library):
    random = np.random.Generator(np.random.PCG64(3))
    options = [drawn_options(random) for _ in range(8)]
    draws = [
        Draw(row, each, changes_of(each, random, 1000), 0.5, [3], mask_of(row, random, 1000))
        for row, each in zip((7, 2, 5, 0, 1, 3, 4, 6), options, strict=True)
    ]
    for logits in (torch.randn(8, 1000), torch.randn(8, 1000).bfloat16()):
        with Calls() as calls:
            assert None not in draw_tokens(logits, draws, library)
        assert calls.names == []


def test_rows_and_options_that_do_not_fit_are_refused(library):
    options = SamplingOptions(temperature=1.0)
    no_changes = LogitChanges(options)
    one = Draw(0, options, no_changes, 0.5)
    with pytest.raises(
        LaunchRefused, match=r"float32 or bfloat16, these are \[1, 4\] of .*float16"
    ):
        drawn_rows(library, torch.zeros(1, 4).half(), [one])
    with pytest.raises(LaunchRefused, match="rows 0 to 1 can be drawn from, not 2"):
        drawn_rows(library, torch.zeros(2, 4), [Draw(2, options, no_changes)])
    with pytest.raises(LaunchRefused, match="draw: 1 rows of 0"):
        drawn_rows(library, torch.zeros(1, 0), [one])
    with pytest.raises(LaunchRefused, match="row 0 changes a token that is not among its 4"):
        drawn_rows(library, torch.zeros(1, 4), [Draw(0, options, no_changes, 0.5, [4])])
    mask = np.ones(3, np.bool_)
    with pytest.raises(LaunchRefused, match="a mask has 3 tokens, a row 4"):
        drawn_rows(library, torch.zeros(1, 4), [Draw(0, options, no_changes, 0.5, (), mask)])
    assert drawn_rows(library, torch.zeros(1, 4), []) == []
