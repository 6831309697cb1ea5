"""Documents move by the shrunk mean of what their recomputed tokens moved."""

import numpy as np
import pytest
import torch

from legokv.errors import LaunchRefused
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.cpu import NativeCalls
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.link.drift import Drift
from legokv.ops.drift import drift_in_place, shrunk_mean
from legokv.ops.rotary import cos_sin, rotate
from legokv.runners.attention_forms import Rotation
from legokv.runners.drift import drift_tables
from legokv.step.batch import StepBatch

NUM_HEADS, HEAD_SIZE, PAGE_SIZE = 2, 48, 4
ROTATION = Rotation(1 / 100 ** (torch.arange(0, HEAD_SIZE, 2) / HEAD_SIZE), 1.0)
# Of two documents: the pages they lie in, those they move to, the key position of their first
# token, and the step's tokens that are theirs, by their numbers in the document.
PAGES = {0: ([6, 2, 3], [1, 7, 0], 5, [0, 5, 11]), 1: ([9], [8], 0, [1, 2])}
FIRST_ROWS = {0: 1, 1: 6}


@pytest.fixture(scope="module")
def calls():
    return NativeCalls(NativeLibrary(build_native_library(print)))


@pytest.fixture(params=["torch", "native"])
def move(request, calls):
    return drift_in_place if request.param == "torch" else calls.drift


def documents(seed: int, dtype: torch.dtype = torch.float32):
    """A pool that holds both documents, and for each its keys before rotation and its values."""
    dice = torch.Generator().manual_seed(seed)
    pool = torch.randn(10, 2, PAGE_SIZE, NUM_HEADS, HEAD_SIZE, generator=dice).to(dtype)
    found = {}
    for number, (pages, _, start, _) in PAGES.items():
        num_tokens = len(pages) * PAGE_SIZE
        kv = torch.randn(2, num_tokens, NUM_HEADS, HEAD_SIZE, generator=dice)
        shape = (len(pages), PAGE_SIZE, NUM_HEADS, HEAD_SIZE)
        pool[pages, 0] = turned(kv[0], start).view(shape).to(dtype)
        pool[pages, 1] = kv[1].view(shape).to(dtype)
        found[number] = kv
    return pool, found


def turned(keys: torch.Tensor, start: int) -> torch.Tensor:
    places = start + torch.arange(len(keys))[:, None]
    return rotate(keys, *cos_sin(places, ROTATION.inv_freq))


def step(fresh: dict[int, torch.Tensor], dtype: torch.dtype = torch.float32):
    """k, v [9, G, D] of a step with these recomputed tokens [2, r, G, D], and its tables."""
    kv = torch.zeros(2, 9, NUM_HEADS, HEAD_SIZE)
    keys = np.zeros(9, np.int32)
    drifts = []
    for number, (pages, own, start, at) in PAGES.items():
        first = FIRST_ROWS[number]
        kv[:, first : first + len(at)] = fresh[number]
        keys[first : first + len(at)] = start + np.array(at)
        stored = [pages[n // PAGE_SIZE] * PAGE_SIZE + n % PAGE_SIZE for n in at]
        table = [
            (p, o, start + n * PAGE_SIZE) for n, (p, o) in enumerate(zip(pages, own, strict=True))
        ]
        drifts.append(Drift(first, np.array(stored, np.int32), np.array(table, np.int32)))
    none = np.zeros(0, np.int32)
    batch = StepBatch(none, none, keys, none, none, none, none, tuple(drifts))
    k, v = kv.to(dtype)
    return k, v, drift_tables(batch, ROTATION, PAGE_SIZE, torch.device("cpu"))


def test_where_all_tokens_moved_alike_a_document_is_as_if_computed_anew(move):
    pool, found = documents(1)
    before = pool.clone()
    moves = {number: torch.randn(2, 1, NUM_HEADS, HEAD_SIZE) for number in PAGES}
    fresh = {n: found[n][:, at] + moves[n] for n, (_, _, _, at) in PAGES.items()}
    move(pool, *step(fresh))
    for number, (pages, own, start, _) in PAGES.items():
        keys, values = pool[own].transpose(0, 1).flatten(1, 2)
        anew = found[number] + moves[number]
        torch.testing.assert_close(keys, turned(anew[0], start), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(values, anew[1], atol=1e-5, rtol=1e-5)
        assert torch.equal(pool[pages], before[pages]), "stored pages are others' too"


def test_a_mean_no_larger_than_its_noise_moves_nothing(move):
    pool, found = documents(2)
    up = torch.full((2, 1, NUM_HEADS, HEAD_SIZE), 3.0)
    moves = {0: torch.cat([up, -up, 0 * up], 1), 1: torch.cat([up, -up], 1)}
    move(pool, *step({n: found[n][:, at] + moves[n] for n, (_, _, _, at) in PAGES.items()}))
    for pages, own, _, _ in PAGES.values():
        torch.testing.assert_close(pool[own], pool[pages])


@pytest.mark.parametrize("instruction_set", [each for each in InstructionSet if each])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_build_of_the_library_moves_as_torch_does(calls, instruction_set, dtype):
    if instruction_set not in calls.instruction_sets():
        pytest.skip("this processor has no such instructions")
    if instruction_set.bfloat16_only and dtype != torch.bfloat16:
        pytest.skip("a build for bfloat16 alone")
    pool, found = documents(3, dtype)
    fresh = {
        n: found[n][:, at] + 0.5 + 0.2 * torch.randn(2, len(at), NUM_HEADS, HEAD_SIZE)
        for n, (_, _, _, at) in PAGES.items()
    }
    k, v, tables = step(fresh, dtype)
    expected = pool.clone()
    drift_in_place(expected, k, v, tables)
    # As the layers give them: parts of one wider tensor.
    wide = torch.cat([k, v], 1)
    parts = wide[:, :NUM_HEADS], wide[:, NUM_HEADS:]
    calls.drift(pool, *parts, tables, instruction_set)
    tolerance = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}[dtype]
    torch.testing.assert_close(pool, expected, atol=tolerance, rtol=tolerance)
    own = [page for _, pages, _, _ in PAGES.values() for page in pages]
    assert not torch.allclose(expected[own].float(), documents(3, dtype)[0][own].float())


def test_a_mean_is_shrunk_by_the_part_of_it_that_is_noise():
    differences = torch.tensor([[[2.0, 0.0]], [[4.0, 0.0]]])
    # Mean 3, its variance 2 / 2 = 1: 3 * (1 - 1 / 9).
    torch.testing.assert_close(shrunk_mean(differences), torch.tensor([[3 * 8 / 9, 0.0]]))


def test_what_did_not_move_stays_without_nan():
    assert torch.equal(shrunk_mean(torch.zeros(3, 1, 4)), torch.zeros(1, 4))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pages[0].fill_(10), "drift: 2 documents"),
        (lambda t: t.pages[1].fill_(-1), "drift: 2 documents"),
        (lambda t: t.stored.fill_(40), "drift: 2 documents"),
        (lambda t: t.documents[:, 0].fill_(8), "drift: 2 documents"),
        (lambda t: t.documents[:, 2].fill_(1), "drift: 2 documents"),
        (lambda t: t.documents[:, 1].fill_(9), "18 tokens, stored are 5"),
    ],
)
def test_the_library_refuses_tables_that_lead_outside_the_tensors(calls, change, message):
    pool, found = documents(4)
    k, v, tables = step({n: found[n][:, at] for n, (_, _, _, at) in PAGES.items()})
    change(tables)
    with pytest.raises(LaunchRefused, match=message):
        calls.drift(pool, k, v, tables)
