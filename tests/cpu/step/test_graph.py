"""One table of the graph's edge, and the profiles made from it."""

import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from legokv.built.plan_limits import (
    MAX_ELEMENTS,
    PlanLimits,
    Profile,
    SizeRange,
    plan_profiles,
    profile_number,
    settled_limits,
)
from legokv.errors import InvalidRequest
from legokv.model.config import ModelConfig, RopeConfig
from legokv.model.dtypes import Dtypes
from legokv.plan.request import PlanFiles, plan_request
from legokv.runners.page_store import PageStore
from legokv.step.batch import Piece, StepBatch, step_batch
from legokv.step.graph import (
    ELEMENT_BYTES,
    STEP_INPUTS,
    SYMBOLS,
    GraphShape,
    batch_sizes,
    graph_shape,
    step_arrays,
)

MODEL = ModelConfig(
    architecture="LlamaForCausalLM",
    vocab_size=100,
    hidden_size=256,
    intermediate_size=512,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_size=64,
    norm_eps=1e-5,
    max_positions=4096,
    rope=RopeConfig(theta=10000.0),
    qkv_bias=False,
    out_bias=False,
    mlp_bias=False,
    qk_norm=False,
    tied_embeddings=True,
    bos_token_id=None,
    eos_token_ids=(),
)
GRAPH = graph_shape(MODEL, Dtypes.same("bfloat16"), page_size=16, imports="plugin")
LIMITS = PlanLimits(max_step_tokens=512, max_sequences=32, max_import_pages=8)


def batch(*lengths: int, table_rows: int = 3) -> StepBatch:
    """Sequences of so many tokens each, whose last token sees all rows."""

    def piece(length: int) -> Piece:
        positions = np.arange(table_rows * 16 - length, table_rows * 16, dtype=np.int32)
        rows = [(page, 0, page * 16, 16) for page in range(table_rows)]
        return Piece(positions, positions, positions, positions, np.array(rows, np.int32))

    return step_batch([piece(length) for length in lengths])


def profiles(limits: PlanLimits = LIMITS) -> tuple[Profile, ...]:
    return plan_profiles(MODEL, GRAPH, limits)


def test_a_step_batch_has_the_step_inputs_of_the_table_in_its_order() -> None:
    *names, drifts = [field.name for field in fields(StepBatch)]
    assert names == [b.name for b in STEP_INPUTS]
    # What a plan cannot do, so modes with drift are refused there.
    assert drifts == "drifts"


def test_a_batch_has_the_types_and_shapes_the_table_says() -> None:
    made = batch(5, 1, 7)
    sizes = batch_sizes(made, num_import_pages=2, num_pages=10)
    assert sizes == {"T": 13, "B": 3, "P": 3, "N": 10, "M": 2}
    arrays = step_arrays(made)
    for binding in STEP_INPUTS:
        assert arrays[binding.name].shape == binding.sized(sizes), binding.name
        assert str(arrays[binding.name].dtype) == binding.dtype, binding.name


def test_inputs_are_in_the_order_of_the_design_and_each_pool_has_its_alias() -> None:
    names = [binding.name for binding in GRAPH.inputs]
    assert names == [
        "input_ids", "positions", "key_positions", "slots", "query_start", "pages", "logit_rows",
        "pool_0", "pool_1", "import_pages", "import_block_0", "import_block_1",
    ]  # fmt: skip
    assert {binding.name: binding.alias_of for binding in GRAPH.outputs} == {
        "logits": None,
        "pool_out_0": "pool_0",
        "pool_out_1": "pool_1",
    }


def test_an_aliased_output_has_the_type_and_shape_of_its_input() -> None:
    inputs = {binding.name: binding for binding in GRAPH.inputs}
    for output in GRAPH.outputs:
        if output.alias_of is not None:
            pool = inputs[output.alias_of]
            assert (output.dtype, output.shape) == (pool.dtype, pool.shape)


def test_every_symbol_of_a_shape_is_in_all_profiles() -> None:
    for profile in profiles():
        assert tuple(profile.ranges) == SYMBOLS
        for binding in (*GRAPH.inputs, *GRAPH.outputs):
            least, usual, most = profile.shapes(binding)
            assert all(a <= b <= c for a, b, c in zip(least, usual, most, strict=True))
            assert ELEMENT_BYTES[binding.dtype] > 0


def test_there_is_always_one_more_start_than_sequences() -> None:
    starts = next(binding for binding in STEP_INPUTS if binding.name == "query_start")
    assert profiles()[0].shapes(starts) == ((2,), (2,), (33,))


@pytest.mark.parametrize(
    ("lengths", "imports", "number"),
    [
        ((1, 1, 1), 0, 1),
        ((1,), 0, 1),
        ((1,) * 32, 0, 1),
        ((40,), 0, 2),
        ((1, 20), 0, 2),
        ((256,), 0, 2),
        ((257,), 0, 0),
        ((1, 1), 1, 0),
        ((40,), 1, 0),
        ((512,), 8, 0),
    ],
)
def test_steps_of_single_tokens_are_decoded_and_short_ones_linked_where_nothing_arrives(
    lengths: tuple[int, ...], imports: int, number: int
) -> None:
    rows = max(lengths) // 16 + 1
    sizes = batch_sizes(batch(*lengths, table_rows=rows), imports, num_pages=100)
    assert profile_number(profiles(), sizes) == number


def test_a_plan_has_a_profile_of_short_links_where_a_step_may_have_their_tokens() -> None:
    most = {n: [p.name for p in profiles(PlanLimits(n))] for n in (255, 256, 8192)}
    assert most == {
        255: ["prefill", "decode"],
        256: ["prefill", "decode", "link"],
        8192: ["prefill", "decode", "link"],
    }
    tokens = [profile.ranges["T"] for profile in profiles(PlanLimits())]
    assert tokens == [SizeRange(1, 2048, 8192), SizeRange(1, 8, 64), SizeRange(64, 192, 256)]


def test_a_plan_of_two_profiles_as_older_builds_made_them_prefills_its_links() -> None:
    two = profiles()[:2]
    assert profile_number(two, {"T": 160, "B": 1, "P": 1, "N": 1, "M": 0}) == 0
    assert profile_number(two, {"T": 1, "B": 1, "P": 1, "N": 1, "M": 0}) == 1


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"T": 513}, "T = 513 is not within 1 to 512"),
        ({"B": 33, "T": 33}, "B = 33 is not within 1 to 32"),
        ({"M": 9}, "M = 9 is not within 0 to 8"),
        ({"P": 4097}, "P = 4097 is not within 1 to 4096"),
    ],
)
def test_a_step_no_profile_holds_is_refused_with_the_numbers(
    sizes: dict[str, int], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        profile_number(profiles(), {"T": 5, "B": 1, "P": 1, "N": 1, "M": 0} | sizes)


def test_a_table_of_one_token_chunks_over_the_whole_context_fits() -> None:
    assert all(profile.ranges["P"].most == MODEL.max_positions for profile in profiles())


def test_no_pool_has_more_elements_than_tensorrt_counts() -> None:
    wide = replace(GRAPH, num_kv_heads=8, head_size=128)
    for profile in plan_profiles(MODEL, wide, LIMITS):
        most = profile.ranges["N"].most
        assert most * wide.page_elements <= MAX_ELEMENTS < (most + 1) * wide.page_elements


@pytest.mark.parametrize("limits", [PlanLimits(0), PlanLimits(8, -1), PlanLimits(8, 8, 0)])
def test_limits_of_nothing_are_refused(limits: PlanLimits) -> None:
    with pytest.raises(InvalidRequest, match="1 or more each"):
        profiles(limits)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        # 2^31 - 1 over gate and up, 2 x 512; over 4 numbers for 4,096 pages; over a page's 4,096.
        (PlanLimits(max_step_tokens=10**9), "max_step_tokens is at most 2,097,151 .* not 1,000,0"),
        (PlanLimits(max_sequences=131072), "max_sequences is at most 131,071 .* not 131,072"),
        (PlanLimits(max_import_pages=524288), "max_import_pages is at most 524,287 .* 4,096 for"),
    ],
)
def test_limits_no_plan_can_have_are_refused_with_the_most_there_can_be(
    limits: PlanLimits, words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        profiles(limits)


def test_limits_at_the_most_there_can_be_keep_every_tensor_countable() -> None:
    most = PlanLimits(2_097_151, 131_071, 524_287)
    assert settled_limits(MODEL, GRAPH, most) == most
    for profile in profiles(most):
        for binding in (*GRAPH.inputs, *GRAPH.outputs):
            assert math.prod(profile.shapes(binding)[2]) <= MAX_ELEMENTS, binding


def test_limits_and_profiles_agree_where_there_are_fewer_tokens_than_sequences() -> None:
    asked = PlanLimits(max_step_tokens=8, max_sequences=64)
    assert settled_limits(MODEL, GRAPH, asked).max_sequences == 8
    assert [profile.ranges["B"].most for profile in profiles(asked)] == [8, 8]


def test_a_graph_shape_is_a_models_numbers() -> None:
    assert GraphShape(2, 100, 2, 64, 16, Dtypes.same("bfloat16"), "plugin") == GRAPH
    assert GRAPH.page_elements == 2 * 16 * 2 * 64


def test_pages_are_of_kv_s_type_and_a_plan_computes_in_its_own() -> None:
    graph = graph_shape(MODEL, Dtypes("bfloat16", "float16", "float32"), page_size=16)
    pages = (*graph.pools, *graph.import_blocks, *graph.outputs[1:])
    assert {binding.dtype for binding in pages} == {"float32"}
    assert {pool.dtype for pool in PageStore(graph, 1, torch.device("cpu")).pools} == {
        torch.float32
    }
    files = PlanFiles(*map(Path, ("model.onnx", "plan", "plugins.so")))
    assert plan_request("tensorrt-rtx", graph, profiles(LIMITS), files).dtype == "float16"
