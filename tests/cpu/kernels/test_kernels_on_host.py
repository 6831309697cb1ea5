"""The CUDA kernels' own source, run on a CPU thread by thread, against loops and the torch ops."""

import ctypes
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from attention_cases import (
    Inputs,
    Sequence,
    Step,
    decoded,
    expected_out,
    expected_pool,
    linked,
    make_inputs,
    whole_chunk,
)
from paths import ROOT
from torch import Tensor

import legokv.ops.kv_import
import legokv.ops.legolink_attention  # noqa: F401 - registers the op
from legokv.errors import LaunchRefused
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.gpu import Launchers, Regime, attention_arguments
from legokv.ops.kv_import import import_stored

OUT = ROOT / "out"

# Absolute, for values of about 1. The plain kernel computes in float32 and rounds once, at the end;
# those on tensor cores also round the rotated query and the weights to 16 bits.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TENSOR_CORE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
# One unit in the last place of a rotated key: its sine and cosine are of another library.
KEY_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}

RAGGED = (
    whole_chunk(1),
    Sequence((), ()),
    linked((20, 33, 17), link_tokens=5, fresh=4),
    decoded(49),
    Sequence((18,), (0, 3, 17), unwritten=(3,)),
)
LONG = (linked((150, 130), link_tokens=16, fresh=9), decoded(257))


@pytest.fixture(scope="module")
def tests_folder() -> Path:
    return build_host_kernels(PluginBuild(OUT), print)


@pytest.fixture(scope="module")
def launchers(tests_folder: Path) -> Launchers:
    return Launchers(tests_folder / "liblegokv_host_kernels.so")


def run(launchers: Launchers, inputs: Inputs, regime: Regime) -> tuple[Tensor, Tensor]:
    """Output and pool; output and workspace start as NaNs."""
    pool = inputs.pool.clone()
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, pool, inputs.tables)
    arguments.regime = regime
    workspace = torch.full((launchers.workspace_bytes(arguments) // 4,), torch.nan)
    out = inputs.q.new_full(inputs.q.shape, torch.nan)
    launchers.legolink_attention(arguments, out, workspace)
    return out, pool


def check(launchers: Launchers, step: Step, regime: Regime) -> None:
    inputs = make_inputs(step)
    out, pool = run(launchers, inputs, regime)
    torch.testing.assert_close(
        pool, expected_pool(inputs), rtol=0, atol=KEY_TOLERANCE[step.dtype], equal_nan=True
    )
    tolerance = (TOLERANCE if regime == Regime.REFERENCE else TENSOR_CORE_TOLERANCE)[step.dtype]
    torch.testing.assert_close(out.double(), expected_out(inputs, pool), rtol=0, atol=tolerance)


FLOAT32_REGIMES = [Regime.REFERENCE, Regime.SPLIT]
REGIMES = [Regime.REFERENCE, Regime.SPLIT, Regime.TILED, Regime.MIXED]
SPLITTING = pytest.mark.parametrize("regime", REGIMES[1:], ids=lambda regime: regime.name.lower())


@pytest.mark.parametrize("regime", FLOAT32_REGIMES, ids=lambda regime: regime.name.lower())
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_float32_attention_is_that_of_the_loops(
    launchers: Launchers, head_size: int, regime: Regime
) -> None:
    check(launchers, Step(RAGGED, head_size=head_size), regime)


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("head_size", [64, 80, 96, 128])
def test_16_bit_attention_is_that_of_the_loops(
    launchers: Launchers, head_size: int, dtype: torch.dtype, regime: Regime
) -> None:
    check(launchers, Step(RAGGED, head_size=head_size, dtype=dtype), regime)


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
@pytest.mark.parametrize("page_size", [16, 32, 64])
def test_pages_of_every_size_are_walked(
    launchers: Launchers, page_size: int, regime: Regime
) -> None:
    step = Step(RAGGED, page_size=page_size, dtype=torch.float16, seed=1)
    check(launchers, step, regime)


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
@pytest.mark.parametrize("heads", [(1, 1), (2, 2), (3, 1), (9, 3), (7, 1), (20, 2)], ids=str)
def test_any_number_of_heads_shares_a_kv_head(
    launchers: Launchers, heads: tuple[int, int], regime: Regime
) -> None:
    sequences = (linked((20, 18), link_tokens=3, fresh=2), decoded(17))
    check(launchers, Step(sequences, heads=heads, dtype=torch.float16, seed=2), regime)


@SPLITTING
def test_long_tables_are_split_over_keys_and_combined(launchers: Launchers, regime: Regime) -> None:
    step = Step(LONG, dtype=torch.float16, seed=3)
    inputs = make_inputs(step)
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
    arguments.regime = regime
    assert launchers.workspace_bytes(arguments) > 0
    check(launchers, step, regime)


# Two groups of rows in a warp, the second of some warps or of all without rows; tiles that begin
# within a token's heads; strips that all rows see, that some see and that none sees.
@pytest.mark.parametrize(
    ("head_size", "heads"), [(64, (2, 2)), (80, (6, 2)), (96, (6, 2)), (128, (7, 1))], ids=str
)
def test_tiles_full_half_full_and_of_few_rows_are_those_of_the_loops(
    launchers: Launchers, head_size: int, heads: tuple[int, int]
) -> None:
    sequences = (whole_chunk(131), linked((40, 70), link_tokens=30, fresh=3), whole_chunk(17))
    step = Step(sequences, heads, head_size, page_size=32, dtype=torch.bfloat16, seed=21)
    check(launchers, step, Regime.TILED)


# As steps have them: rows in order, each chunk's one after another, so that stages are full. Where
# nothing is split the list of strips goes round.
@pytest.mark.parametrize(("num_splits", "head_size", "longest"), [(1, 64, 900), (3, 128, 600)])
def test_tables_in_order_of_several_bases_are_walked_whole(
    launchers: Launchers, num_splits: int, head_size: int, longest: int
) -> None:
    sequence = linked((150, 37, longest, 16), link_tokens=20, fresh=9)
    inputs = make_inputs(Step((sequence,), (4, 1), head_size, dtype=torch.bfloat16, seed=22))
    rows = sorted(inputs.tables.pages[0].tolist(), key=lambda row: (row[3] == 0, row[2]))
    inputs.tables.pages[0] = torch.tensor(rows, dtype=torch.int32)
    pool = inputs.pool.clone()
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, pool, inputs.tables)
    arguments.regime, arguments.num_splits = Regime.TILED, num_splits
    workspace = torch.full((launchers.workspace_bytes(arguments) // 4,), torch.nan)
    out = torch.full_like(inputs.q, torch.nan)
    launchers.legolink_attention(arguments, out, workspace)
    allowed = TENSOR_CORE_TOLERANCE[torch.bfloat16]
    torch.testing.assert_close(out.double(), expected_out(inputs, pool), rtol=0, atol=allowed)


@SPLITTING
def test_no_order_of_a_block_s_threads_changes_the_result(
    launchers: Launchers, regime: Regime
) -> None:
    inputs = make_inputs(Step(RAGGED, dtype=torch.bfloat16, seed=4))
    results = []
    for order in (0, 1, 2):
        launchers.library.legokv_host_set_order(order)
        results.append(run(launchers, inputs, regime)[0])
    launchers.library.legokv_host_set_order(0)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
@pytest.mark.parametrize("num_tokens", [20, 257], ids=["one-split", "several-splits"])
def test_a_token_that_sees_no_key_gets_zeros(
    launchers: Launchers, num_tokens: int, regime: Regime
) -> None:
    inputs = make_inputs(Step((decoded(num_tokens),), dtype=torch.float16, seed=5))
    inputs.tables.pages[..., 1:3] += num_tokens
    out, _ = run(launchers, inputs, regime)
    assert torch.equal(out, torch.zeros_like(out))


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
def test_tokens_after_the_last_sequence_get_zeros(launchers: Launchers, regime: Regime) -> None:
    inputs = make_inputs(Step((decoded(20), decoded(5)), dtype=torch.float16, seed=6))
    inputs.tables.query_start[-1] = 1
    out, _ = run(launchers, inputs, regime)
    assert torch.equal(out[1], torch.zeros_like(out[1]))
    assert out[0].abs().sum() > 0


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
def test_what_lies_after_the_last_token_is_not_looked_at(
    launchers: Launchers, regime: Regime
) -> None:
    inputs = make_inputs(Step((Sequence((70,), (9, 20)),), dtype=torch.float16, seed=9))
    for page, _, first_position, _ in inputs.tables.pages[0].tolist():
        if page < inputs.pool.shape[0]:
            inputs.pool[page, :, max(0, 21 - first_position) :] = torch.nan
    out, pool = run(launchers, inputs, regime)
    torch.testing.assert_close(
        out.double(), expected_out(inputs, pool), rtol=0, atol=TENSOR_CORE_TOLERANCE[torch.float16]
    )


def test_each_sequence_of_a_mixed_step_gets_the_kernel_for_its_own_rows(
    launchers: Launchers,
) -> None:
    inputs = make_inputs(Step((*LONG, decoded(200)), dtype=torch.bfloat16, seed=10))
    starts = inputs.tables.query_start.tolist()
    made, _ = run(launchers, inputs, Regime.AUTO)
    tiled, _ = run(launchers, inputs, Regime.TILED)
    split, _ = run(launchers, inputs, Regime.SPLIT)
    assert not torch.equal(tiled, split)
    assert torch.equal(made[: starts[1]], tiled[: starts[1]])
    assert torch.equal(made[starts[1] :], split[starts[1] :])


def test_a_step_without_tokens_changes_nothing(launchers: Launchers) -> None:
    inputs = make_inputs(Step((Sequence((20,), ()),)))
    _, pool = run(launchers, inputs, Regime.AUTO)
    torch.testing.assert_close(pool, inputs.pool, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_launchers_do_what_the_torch_op_means(launchers: Launchers, dtype: torch.dtype) -> None:
    inputs = make_inputs(Step(RAGGED, heads=(6, 2), head_size=96, dtype=dtype, seed=7))
    out, pool = run(launchers, inputs, Regime.AUTO)
    tables = inputs.tables
    meant_out, meant_pool = torch.ops.legokv.legolink_attention(
        inputs.q,
        inputs.k,
        inputs.v,
        inputs.pool,
        tables.positions,
        tables.key_positions,
        tables.slots,
        tables.query_start,
        tables.pages,
        tables.inv_freq,
        tables.scale,
    )
    tolerance = TENSOR_CORE_TOLERANCE[dtype]
    torch.testing.assert_close(out, meant_out, rtol=0, atol=tolerance)
    torch.testing.assert_close(pool, meant_pool, rtol=0, atol=KEY_TOLERANCE[dtype], equal_nan=True)


DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("block_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pool_dtype", DTYPES, ids=str)
def test_imported_pages_are_converted_and_the_others_untouched(
    launchers: Launchers, pool_dtype: torch.dtype, block_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(8)
    pool = torch.randn((5, 2, 16, 3, 80), generator=generator).to(pool_dtype)
    block = torch.randn((3, 2, 16, 3, 80), generator=generator).to(block_dtype)
    pages = torch.tensor([4, 0, 2], dtype=torch.int32)
    meant = torch.ops.legokv.kv_import(pool, block, pages)
    launchers.kv_import(pool, block, pages)
    assert torch.equal(pool, meant)


@pytest.mark.parametrize("kv_dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_tokens", [5, 32, 41])
def test_stored_kv_goes_to_the_pages_of_all_layers_in_one_launch(
    launchers: Launchers, num_tokens: int, kv_dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(8)
    pools = torch.randn((2, 5, 2, 16, 3, 80), generator=generator).bfloat16()
    kv = torch.randn((2, 2, num_tokens, 3, 80), generator=generator).to(kv_dtype)
    pages = torch.tensor([4, 0, 9][: -(-num_tokens // 16)], dtype=torch.int32)
    meant = pools.clone()
    import_stored(meant, kv[:, :, :32], pages[:2])
    launchers.import_kv(pools, kv, pages)  # page 9 is no page of the pool
    assert torch.equal(pools, meant)
    with pytest.raises(LaunchRefused, match="does not fit pools of"):
        launchers.import_kv(pools, kv[:1], pages)


def test_an_import_of_no_page_or_outside_the_pool_writes_nothing(launchers: Launchers) -> None:
    pool = torch.randn((3, 2, 16, 1, 64))
    before = pool.clone()
    launchers.kv_import(pool, pool[:0], torch.empty(0, dtype=torch.int32))
    block = torch.ones((2, 2, 16, 1, 64))
    launchers.kv_import(pool, block, torch.tensor([-1, 3], dtype=torch.int32))
    assert torch.equal(pool, before)


@pytest.mark.parametrize("regime", REGIMES, ids=lambda regime: regime.name.lower())
def test_q_k_and_v_may_be_parts_of_one_product(launchers: Launchers, regime: Regime) -> None:
    """What is beside them is never read."""
    inputs = make_inputs(Step(RAGGED, dtype=torch.bfloat16, seed=18))
    heads = [part.shape[1] for part in (inputs.q, inputs.k, inputs.v)]
    rest = torch.full_like(inputs.k[:, :1], torch.nan)
    product = torch.cat([rest, inputs.q, rest, inputs.k, inputs.v], dim=1)
    _, q, _, k, v = product.split([1, heads[0], 1, heads[1], heads[2]], dim=1)
    assert not any(part.is_contiguous() for part in (q, k, v))
    found = run(launchers, replace(inputs, q=q, k=k, v=v), regime)
    meant = run(launchers, inputs, regime)
    for ours, theirs in zip(found, meant, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_tokens_that_are_no_whole_vectors_apart_are_refused(launchers: Launchers) -> None:
    inputs = make_inputs(Step((decoded(3),)))
    for name in ("q_stride", "k_stride", "v_stride"):
        arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
        setattr(arguments, name, 132)
        with pytest.raises(LaunchRefused, match="multiples of 8 elements apart, not "):
            launchers.legolink_attention(arguments, torch.empty_like(inputs.q))


def test_what_no_kernel_does_is_refused_with_the_numbers(launchers: Launchers) -> None:
    inputs = make_inputs(Step((decoded(3),)))
    for change, message in (
        ({"head_size": 72}, "no kernel for head size 72; 64, 80, 96, 128 have one"),
        ({"page_size": 48}, "no kernel for page size 48; 16, 32, 64 have one"),
        ({"num_heads": 5}, "2 KV heads do not divide 5 query heads"),
        ({"regime": Regime.TILED}, "regime 3 does not do dtype 0"),
        ({"dtype": 9}, "dtype is 0, 1 or 2, not 9"),
    ):
        arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
        for name, value in change.items():
            setattr(arguments, name, value)
        with pytest.raises(LaunchRefused, match=message):
            launchers.legolink_attention(arguments, torch.empty_like(inputs.q))
        with pytest.raises(LaunchRefused, match=message):
            launchers.workspace_bytes(arguments)


def test_too_small_a_workspace_is_refused(launchers: Launchers) -> None:
    inputs = make_inputs(Step(LONG))
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
    with pytest.raises(LaunchRefused, match=r"8 bytes of workspace are too few, \d+ needed"):
        launchers.legolink_attention(
            arguments, torch.empty_like(inputs.q), torch.empty(2, dtype=torch.float32)
        )


# A GPU stops at a misaligned 16-byte access, at some later call and for the rest of the process.
@pytest.mark.parametrize("name", ["q", "k", "v", "pool", "pages", "out", "workspace"])
def test_attention_of_a_misaligned_address_is_refused_before_a_kernel_runs(
    launchers: Launchers, name: str
) -> None:
    inputs = make_inputs(Step((decoded(3),)))
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, inputs.pool, inputs.tables)
    arguments.out = torch.empty_like(inputs.q).data_ptr()
    setattr(arguments, name, (getattr(arguments, name) or 0) + 8)
    assert launchers.library.legokv_legolink_attention(ctypes.byref(arguments), None) == 1
    message = launchers.library.legokv_last_error()
    assert b"q, k, v, pool, pages, out, workspace must be 16-byte aligned" in message


@pytest.mark.parametrize("name", ["pool", "block"])
def test_an_import_at_a_misaligned_address_is_refused_before_a_kernel_runs(
    launchers: Launchers, name: str
) -> None:
    tensors = {
        "pool": torch.zeros((2, 2, 16, 1, 64), dtype=torch.float16),
        "block": torch.ones((1, 2, 16, 1, 64), dtype=torch.float16),
    }
    like = tensors[name]
    shifted = torch.zeros(like.numel() + 4, dtype=like.dtype)[4:].view(like.shape)
    with pytest.raises(LaunchRefused, match="pool and block must be 16-byte aligned"):
        launchers.kv_import(**(tensors | {name: shifted}), pages=torch.zeros(1, dtype=torch.int32))


@pytest.mark.parametrize("program", ["test_arithmetic", "test_host_form"])
def test_the_arithmetic_and_the_host_form_keep_their_promises(
    tests_folder: Path, program: str
) -> None:
    finished = subprocess.run([tests_folder / program], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stdout + finished.stderr


def race_check(tests_folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [tests_folder / "race_check", *arguments],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    "kernel", ["split", "float-split", "tiled", "long-tiled", "shared", "reference"]
)
def test_no_two_threads_race(tests_folder: Path, kernel: str) -> None:
    finished = race_check(tests_folder, kernel)
    assert finished.returncode == 0, finished.stderr


# By number in the order that a thread comes to them.
NEEDED_BARRIERS = [
    ("split", "warp", 0, "angles are read by other lanes"),
    ("split", "warp", 1, "copied strips are read by other lanes"),
    ("split", "warp", 2, "the strip is replaced"),
    ("split", "block", 0, "the warps' results are merged"),
    ("float-split", "warp", 0, "copied strips and the rotated query are read by other lanes"),
    ("float-split", "warp", 1, "weights are read by other lanes"),
    ("float-split", "warp", 2, "the strip is replaced"),
    ("float-split", "block", 0, "the warps' results are merged"),
    ("tiled", "block", 0, "rows and the first strips are listed by other threads"),
    ("tiled", "block", 1, "copied strips are read by other threads"),
    ("tiled", "block", 2, "the strips are replaced and others listed"),
    ("tiled", "warp", 0, "the rotated query is read by other lanes"),
    ("tiled", "warp", 1, "the query, rotated again, is read by other lanes"),
    ("shared", "block", 0, "rows and the first strips are listed by other threads"),
    ("shared", "block", 1, "copied strips are read by other threads"),
    ("shared", "block", 2, "the strips are replaced and others listed"),
    ("shared", "warp", 0, "the rotated query is read by other lanes"),
]


@pytest.mark.parametrize(("kernel", "kind", "ordinal", "what"), NEEDED_BARRIERS)
def test_a_missing_barrier_is_found(
    tests_folder: Path, kernel: str, kind: str, ordinal: int, what: str
) -> None:
    finished = race_check(tests_folder, kernel, kind, str(ordinal))
    assert finished.returncode == 66, what
    assert "ThreadSanitizer: data race" in finished.stderr
