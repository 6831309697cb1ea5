"""Tokens drawn by the library: those of torch's form, in each of its builds."""

from functools import partial

import numpy as np
import pytest
import torch

from legokv.engine import draw as draw_module
from legokv.engine.sampling import Draw, LogitChanges, SamplingOptions
from legokv.errors import LaunchRefused
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.native_library import DrawOptions, InstructionSet, NativeLibrary, drawn_rows

BUILDS = [each for each in InstructionSet if not each.bfloat16_only]


def rounded_logits(vocab, spread, seed):
    """Rounded, so that some are equal."""
    random = np.random.Generator(np.random.PCG64(seed))
    return (random.standard_normal((2, vocab)) * spread).round(2).astype(np.float32)


@pytest.mark.parametrize("instruction_set", BUILDS)
def test_each_build_of_the_library_draws_what_the_reference_draws(
    instruction_set, monkeypatch, torch_threads
):
    torch_threads(1)
    library = NativeLibrary(build_native_library(print))
    if instruction_set and not library.functions.legokv_cpu_has(instruction_set):
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    drawn = partial(drawn_rows, instruction_set=instruction_set)
    monkeypatch.setattr(draw_module, "drawn_rows", drawn)
    random = np.random.Generator(np.random.PCG64(12))
    for trial in range(120):
        vocab = (5, 63, 64, 65, 1000, 5000, 17000)[trial % 7]
        spread = random.choice([0, 0.1, 1, 3, 10])
        logits = torch.from_numpy(rounded_logits(vocab, spread, trial))
        options = SamplingOptions(
            temperature=random.choice([0, 0.3, 1, 50]),
            top_k=int(random.choice([0, 1, 7, 300])),
            top_p=random.choice([1, 0.9, 0.3]),
            min_p=random.choice([0, 0.05]),
            repetition_penalty=random.choice([1, 1.2]),
        )
        changes = LogitChanges(options, [1, 2])
        banned = [0, 3] if trial % 3 else []
        places = [float(random.random()), random.choice([0.0, 1 - 2**-53])]
        draws = [Draw(row, options, changes, place, banned) for row, place in enumerate(places)]
        found = draw_module.draw_tokens(logits, draws, library)
        assert found == draw_module.draw_tokens(logits, draws), (vocab, spread, options)


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
        found = draw_module.draw_tokens(logits, draws, library)
        torch_threads(1)
        alone = [draw_module.draw_tokens(logits, [draw], library)[0] for draw in draws]
        assert found == alone == draw_module.draw_tokens(logits, draws), (top_k, top_p, min_p)


def test_rows_and_options_that_do_not_fit_are_refused():
    library = NativeLibrary(build_native_library(print))
    one = DrawOptions([1.0], [0], [1.0], [0.0], [0.5])
    with pytest.raises(LaunchRefused, match=r"float32 or float64, these are \[1, 4\] of .*float16"):
        drawn_rows(library, torch.zeros(1, 4).half(), one)
    with pytest.raises(LaunchRefused, match="2 rows to draw from need as many of each option"):
        drawn_rows(library, torch.zeros(2, 4), one)
    with pytest.raises(LaunchRefused, match="draw: 1 rows of 0"):
        drawn_rows(library, torch.zeros(1, 0), one)
    assert drawn_rows(library, torch.full((1, 4), -torch.inf), one).tolist() == [0]
