"""Every attention kernel at every shape family, against float64 loops over fresh random inputs."""

from dataclasses import replace

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
from gpu_kernels import (
    KEY_TOLERANCE,
    Kernels,
    attend_in_place,
    on_device,
    tolerance,
    with_shared_tiles,
)
from shared_cases import Sizes, asking, inputs_of

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


@pytest.mark.parametrize(("dtype", "regime"), KERNELS)
def test_q_k_and_v_may_be_parts_of_one_product(
    kernels: Kernels, seed: int, dtype: torch.dtype, regime: Regime
) -> None:
    """The same bits as from tensors of their own; what is beside them is never read."""
    sequences = (linked((150, 130), link_tokens=16, fresh=9), decoded(257))
    inputs = make_inputs(Step(sequences, heads=(8, 2), dtype=dtype, seed=seed + 7))
    rest = torch.full_like(inputs.k[:, :1], torch.nan)
    product = torch.cat([rest, inputs.q, rest, inputs.k, inputs.v], dim=1).to(kernels.device)
    _, q, _, k, v = product.split([1, 8, 1, 2, 2], dim=1)
    assert not any(part.is_contiguous() for part in (q, k, v))
    given = on_device(inputs, kernels.device)
    meant, meant_pool = kernels.attend(inputs, regime)
    pool = given.pool.clone()
    made = attend_in_place(kernels, replace(given, q=q, k=k, v=v, pool=pool), regime)
    assert torch.equal(made, meant)
    assert torch.equal(pool.nan_to_num(7.0), meant_pool.nan_to_num(7.0))


# More rows than a tile has, tiles that begin within a token's heads, groups of rows without any.
@pytest.mark.parametrize("heads", [(2, 2), (6, 2), (7, 1)], ids=str)
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_tiles_full_half_full_and_of_few_rows_are_those_of_the_loops(
    kernels: Kernels, seed: int, head_size: int, heads: tuple[int, int]
) -> None:
    sequences = (whole_chunk(131), linked((40, 70), link_tokens=30, fresh=3), whole_chunk(17))
    step = Step(sequences, heads, head_size, page_size=32, dtype=torch.bfloat16, seed=seed + 8)
    check(kernels, step, Regime.TILED)


# In orders of their own, one with three tokens, one with many, one twice over a chunk.
ASKED = (((0, 1, 2), 5, 1), ((2, 1, 0), 21, 1), ((1, 0), 40, 3), ((0, 0, 2), 17, 1), ((1,), 30, 18))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("head_size", "heads"), [(64, (6, 2)), (80, (2, 2)), (96, (14, 2)),
                                                  (128, (8, 2))], ids=str)  # fmt: skip
def test_shared_tiles_are_those_of_the_loops(
    kernels: Kernels, seed: int, head_size: int, heads: tuple[int, int], dtype: torch.dtype
) -> None:
    sizes = Sizes(heads, head_size)
    inputs = inputs_of(asking(ASKED, sizes, seed=seed), sizes, dtype, seed)
    given = with_shared_tiles(kernels, inputs)
    out = attend_in_place(kernels, given, Regime.AUTO).cpu()
    torch.testing.assert_close(
        out.double(),
        expected_out(inputs, given.pool.cpu()),
        rtol=0,
        atol=tolerance(dtype, Regime.SPLIT),
    )
