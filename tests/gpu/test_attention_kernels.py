"""Every attention kernel at every shape family, against float64 loops over fresh random inputs."""

import pytest
import torch
from attention_cases import (
    Sequence,
    Step,
    decoded,
    expected_out,
    expected_pool,
    linked,
    make_inputs,
    whole_chunk,
)
from gpu_kernels import KEY_TOLERANCE, Kernels, tolerance

from legokv.kernels.gpu import Regime

RAGGED = (
    whole_chunk(1),
    Sequence((), ()),
    linked((20, 33, 17), link_tokens=5, fresh=4),
    decoded(49),
    Sequence((18,), (0, 3, 17), unwritten=(3,)),
)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
REGIMES = [Regime.REFERENCE, Regime.SPLIT, Regime.TILED, Regime.MIXED]
# What has a kernel: all regimes of the 16-bit types, and float32 without tensor cores.
KERNELS = [
    pytest.param(dtype, regime, id=f"{str(dtype).removeprefix('torch.')}-{regime.name.lower()}")
    for dtype in DTYPES
    for regime in REGIMES
    if dtype != torch.float32 or regime < Regime.TILED
]
ALL_REGIMES = pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())


def check(kernels: Kernels, step: Step, regime: Regime) -> None:
    inputs = make_inputs(step)
    out, pool = (made.cpu() for made in kernels.attend(inputs, regime))
    torch.testing.assert_close(
        pool, expected_pool(inputs), rtol=0, atol=KEY_TOLERANCE[step.dtype], equal_nan=True
    )
    torch.testing.assert_close(
        out.double(), expected_out(inputs, pool), rtol=0, atol=tolerance(step.dtype, regime)
    )


@pytest.mark.parametrize(("dtype", "regime"), KERNELS)
@pytest.mark.parametrize("page_size", [16, 32, 64])
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_ragged_steps_are_those_of_the_loops(
    kernels: Kernels, seed: int, head_size: int, page_size: int, dtype: torch.dtype, regime: Regime
) -> None:
    step = Step(RAGGED, head_size=head_size, page_size=page_size, dtype=dtype, seed=seed)
    check(kernels, step, regime)


@pytest.mark.parametrize(("dtype", "regime"), KERNELS)
@pytest.mark.parametrize(
    "heads", [(1, 1), (2, 2), (3, 1), (9, 3), (7, 1), (20, 2), (32, 8)], ids=str
)
def test_any_number_of_heads_shares_a_kv_head(
    kernels: Kernels, seed: int, heads: tuple[int, int], dtype: torch.dtype, regime: Regime
) -> None:
    sequences = (linked((20, 18), link_tokens=3, fresh=2), decoded(17))
    check(kernels, Step(sequences, heads=heads, dtype=dtype, seed=seed + 1), regime)


@pytest.mark.parametrize(("dtype", "regime"), KERNELS)
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_one_token_sequences_and_last_pages_of_one_token_are_seen(
    kernels: Kernels, seed: int, page_size: int, dtype: torch.dtype, regime: Regime
) -> None:
    sequences = (
        whole_chunk(1),
        decoded(1),
        whole_chunk(page_size + 1),
        decoded(2 * page_size + 1),
        linked((page_size + 1, 1, page_size), link_tokens=1, fresh=1),
    )
    step = Step(sequences, page_size=page_size, dtype=dtype, seed=seed + 2)
    check(kernels, step, regime)


@ALL_REGIMES
@pytest.mark.parametrize("num_tokens", [20, 257], ids=["one-split", "several-splits"])
def test_a_token_that_sees_no_key_gets_zeros(
    kernels: Kernels, seed: int, num_tokens: int, regime: Regime
) -> None:
    inputs = make_inputs(Step((decoded(num_tokens),), dtype=torch.float16, seed=seed + 3))
    inputs.tables.pages[..., 1:3] += num_tokens
    out, _ = kernels.attend(inputs, regime)
    assert torch.equal(out, torch.zeros_like(out))


@ALL_REGIMES
def test_tokens_after_the_last_sequence_get_zeros(
    kernels: Kernels, seed: int, regime: Regime
) -> None:
    inputs = make_inputs(Step((decoded(20), decoded(5)), dtype=torch.float16, seed=seed + 4))
    inputs.tables.query_start[-1] = 1
    out, _ = kernels.attend(inputs, regime)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].abs().sum() > 0


@ALL_REGIMES
def test_what_lies_after_the_last_token_is_not_looked_at(
    kernels: Kernels, seed: int, regime: Regime
) -> None:
    inputs = make_inputs(Step((Sequence((70,), (9, 20)),), dtype=torch.float16, seed=seed + 5))
    for page, _, first_position, _ in inputs.tables.pages[0].tolist():
        if page < inputs.pool.shape[0]:
            inputs.pool[page, :, max(0, 21 - first_position) :] = torch.nan
    out, pool = (made.cpu() for made in kernels.attend(inputs, regime))
    torch.testing.assert_close(
        out.double(), expected_out(inputs, pool), rtol=0, atol=tolerance(torch.float16, regime)
    )


@ALL_REGIMES
def test_a_step_without_tokens_changes_nothing(kernels: Kernels, seed: int, regime: Regime) -> None:
    inputs = make_inputs(Step((Sequence((20,), ()),), dtype=torch.float16, seed=seed + 6))
    _, pool = kernels.attend(inputs, regime)
    assert torch.equal(pool.cpu().view(torch.int16), inputs.pool.view(torch.int16))
