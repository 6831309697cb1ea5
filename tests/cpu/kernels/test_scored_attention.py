"""What attention says it attended to: the CPU library's masses against the op's own body."""

import pytest
import torch
from attention_cases import Inputs, Sequence, Step, decoded, linked, make_inputs, whole_chunk
from paths import ROOT
from torch import Tensor

from legokv.errors import LaunchRefused
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.cpu import NativeCalls, StepShape
from legokv.kernels.gpu import Launchers, attention_arguments
from legokv.kernels.native_library import InstructionSet, NativeLibrary
from legokv.ops.legolink_attention import write_keys_and_values
from legokv.ops.scored_attention import key_mass, scored_attention

# Of a slot's mass, in weights of one head of one token; bfloat16 pairs round the turned query too.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-4, torch.bfloat16: 4e-4}
PAIRS_TOLERANCE = 2e-2

KERNELS = [
    (each, dtype)
    for each in InstructionSet
    for dtype in TOLERANCE
    if each and (not each.bfloat16_only or dtype == torch.bfloat16)
]
RAGGED = (
    whole_chunk(1),
    Sequence((), ()),
    linked((20, 33, 17), link_tokens=5, fresh=4),
    decoded(49),
    Sequence((18,), (0, 3, 17), unwritten=(3,)),
    linked((150, 130, 140), link_tokens=0, fresh=90),
)
SCORING = (1, 0, 4, 1, 2, 77)


@pytest.fixture(scope="module")
def calls() -> NativeCalls:
    return NativeCalls(NativeLibrary(build_native_library(print)))


def of(*counts: int) -> Tensor:
    return torch.tensor(counts, dtype=torch.int32)


def native(
    calls: NativeCalls,
    inputs: Inputs,
    scoring: Tensor,
    instruction_set: InstructionSet = InstructionSet.BEST,
    num_threads: int = 2,
) -> tuple[Tensor, Tensor]:
    """Output and masses, which start as NaNs."""
    num_pages, _, page_size, num_kv_heads, head_size = inputs.pool.shape
    num_heads, pool = inputs.q.shape[1], inputs.pool.clone()
    shape = StepShape(num_pages, page_size, num_heads, num_kv_heads, head_size, pool.dtype)
    options = {"num_threads": num_threads, "instruction_set": instruction_set}
    with calls.step(inputs.tables, shape, scoring=scoring, **options) as step:
        mass = torch.full((*inputs.tables.pages.shape[:2], page_size), torch.nan)
        return step.attend(inputs.q, inputs.k, inputs.v, pool, mass), mass


def by_torch(inputs: Inputs, scoring: Tensor) -> Tensor:
    """Torch's form, which is held to the definition below, since that takes seconds."""
    t, pool = inputs.tables, inputs.pool.clone()
    write_keys_and_values(inputs.k, inputs.v, pool, t.key_positions, t.slots, t.inv_freq)
    tables = (t.positions, t.query_start, t.pages, t.inv_freq)
    return key_mass(inputs.q, pool, *tables, scoring, t.scale)


def defined(inputs: Inputs, scoring: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    t = inputs.tables
    return scored_attention(
        *(inputs.q, inputs.k, inputs.v, inputs.pool, t.positions, t.key_positions),
        *(t.slots, t.query_start, t.pages, t.inv_freq, scoring, t.scale),
    )


def tolerance_of(instruction_set: InstructionSet, dtype: torch.dtype) -> float:
    return PAIRS_TOLERANCE if instruction_set.bfloat16_only else TOLERANCE[dtype]


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize(("instruction_set", "dtype"), KERNELS)
def test_each_instruction_set_s_masses_are_the_definition_s(
    calls, instruction_set, dtype, num_threads
):
    if instruction_set not in calls.instruction_sets():
        pytest.skip(f"this processor or compiler has no {instruction_set.name}")
    for seed, (page_size, heads) in enumerate(((16, (9, 3)), (5, (6, 2)), (64, (2, 2)))):
        inputs = make_inputs(Step(RAGGED, heads=heads, page_size=page_size, dtype=dtype, seed=seed))
        out, mass = native(calls, inputs, of(*SCORING), instruction_set, num_threads)
        expected = by_torch(inputs, of(*SCORING))
        # Of a slot that several rows see, their errors add.
        allowed = tolerance_of(instruction_set, dtype) * (1 + expected)
        assert ((mass - expected).abs() <= allowed).all()
        unscored, _ = native(calls, inputs, of(*([0] * len(RAGGED))), instruction_set, num_threads)
        assert torch.equal(out, unscored)


def test_the_masses_of_a_sequence_sum_to_its_scoring_tokens_times_the_heads(calls):
    inputs = make_inputs(Step(RAGGED, heads=(6, 2)))
    _, mass = native(calls, inputs, of(*SCORING))
    torch.testing.assert_close(mass.sum((1, 2)), 6.0 * torch.tensor(SCORING), atol=1e-3, rtol=0)


def test_torch_s_own_form_gives_the_definition_s_masses():
    inputs = make_inputs(Step((*RAGGED[:-1], linked((60, 30), 0, 9)), heads=(6, 2), seed=3))
    scoring = of(*SCORING[:-1], 7)
    _, _, expected = defined(inputs, scoring)
    torch.testing.assert_close(by_torch(inputs, scoring), expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("num_threads", [1, 2])
def test_a_sequence_s_masses_have_the_same_bits_in_any_company(calls, num_threads):
    """Its keys in other pages, listed in another order, and other threads beside."""
    sequence = linked((700, 650, 540), link_tokens=0, fresh=70)
    alone = make_inputs(Step((sequence,), heads=(9, 3), seed=5))
    crowd = make_inputs(Step((decoded(30), sequence, *(decoded(30),) * 20), heads=(9, 3), seed=5))
    for name in ("q", "k", "v"):
        getattr(crowd, name)[1:71] = getattr(alone, name)
    rows_of = [
        {int(row[2]): n for n, row in enumerate(table) if row[3] > 0}
        for table in (alone.tables.pages[0], crowd.tables.pages[1])
    ]
    own, same = list(rows_of[0].values()), [rows_of[1][first] for first in rows_of[0]]
    one, other = alone.tables.pages[0, own], crowd.tables.pages[1, same]
    assert torch.equal(one[:, 1:], other[:, 1:])
    crowd.pool[other[:, 0].long()] = alone.pool[one[:, 0].long()]
    _, expected = native(calls, alone, of(50), num_threads=2)
    _, found = native(calls, crowd, of(1, 50, *([0] * 20)), num_threads=num_threads)
    assert torch.equal(found[1, same], expected[0, own])


def test_counts_that_cannot_be_are_refused_with_the_numbers(calls):
    inputs = make_inputs(Step((whole_chunk(20), decoded(5))))
    with pytest.raises(LaunchRefused, match="21 tokens of sequence 0 score keys, it has 20"):
        native(calls, inputs, of(21, 0))
    with pytest.raises(LaunchRefused, match="-1 tokens of sequence 1 score keys, it has 1"):
        native(calls, inputs, of(0, -1))
    with pytest.raises(LaunchRefused, match="scoring has 1 numbers for 2 sequences"):
        native(calls, inputs, of(1))


def test_a_mass_of_another_shape_or_unasked_for_is_refused(calls):
    inputs = make_inputs(Step((whole_chunk(20), decoded(5))))
    num_pages, _, page_size, num_kv_heads, head_size = inputs.pool.shape
    num_heads, pool = inputs.q.shape[1], inputs.pool.clone()
    shape = StepShape(num_pages, page_size, num_heads, num_kv_heads, head_size, pool.dtype)
    for scoring, wanted in ((of(1, 1), r"\(2, \d+, 16\), not \(2, 0, 16\)"), (None, "None, not")):
        with (
            calls.step(inputs.tables, shape, num_threads=1, scoring=scoring) as step,
            pytest.raises(LaunchRefused, match=f"this step's mass is float32 {wanted}"),
        ):
            step.attend(inputs.q, inputs.k, inputs.v, pool, torch.zeros(2, 0, 16))


@pytest.fixture(scope="module")
def launchers() -> Launchers:
    folder = build_host_kernels(PluginBuild(ROOT / "out"), print)
    return Launchers(folder / "liblegokv_host_kernels.so")


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("heads", "head_size", "page_size"), [((6, 2), 64, 16), ((9, 3), 96, 32), ((2, 2), 128, 64)]
)
def test_the_cuda_kernels_source_gives_the_definition_s_masses(
    launchers, heads, head_size, page_size, dtype
):
    sequences, scoring = (*RAGGED[:-1], linked((60, 30), 0, 9)), of(*SCORING[:-1], 7)
    step = Step(sequences, heads=heads, head_size=head_size, page_size=page_size, dtype=dtype)
    inputs = make_inputs(step)
    pool, out = inputs.pool.clone(), torch.full_like(inputs.q, torch.nan)
    arguments = attention_arguments(inputs.q, inputs.k, inputs.v, pool, inputs.tables)
    workspace = torch.full((launchers.scored_workspace_bytes(arguments) // 4,), torch.nan)
    mass = torch.full((*inputs.tables.pages.shape[:2], page_size), torch.nan)
    launchers.scored_attention(arguments, out, (scoring, mass), workspace)
    expected = by_torch(inputs, scoring)
    assert ((mass - expected).abs() <= TOLERANCE[dtype] * (1 + expected)).all()
    alone = torch.empty_like(out)
    launchers.legolink_attention(arguments, alone, workspace)
    assert torch.equal(out, alone)


def test_a_workspace_or_mass_that_is_too_small_is_refused(launchers):
    inputs = make_inputs(Step((whole_chunk(20),), head_size=64))
    arguments = attention_arguments(
        inputs.q, inputs.k, inputs.v, inputs.pool.clone(), inputs.tables
    )
    out, mass = torch.empty_like(inputs.q), torch.empty(*inputs.tables.pages.shape[:2], 16)
    with pytest.raises(LaunchRefused, match="scored_attention: 4 bytes of workspace are too few"):
        launchers.scored_attention(arguments, out, (of(3), mass), torch.empty(1))
    workspace = torch.empty(launchers.scored_workspace_bytes(arguments) // 4)
    with pytest.raises(LaunchRefused, match="do not fit a step of"):
        launchers.scored_attention(arguments, out, (of(3), mass[:, :1]), workspace)
