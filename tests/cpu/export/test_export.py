"""The exported file executed on a CPU equals the model, step by step, on real steps of the engine.

float32 and float16 files by onnx's reference evaluator; bfloat16, which numpy does not have, by
torch, node after node. A float32 file goes through both, so that the second is held to the first.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_session import GraphSession, export_engine, graph_runner, shape_of
from onnx import TensorProto
from onnx_by_torch import torch_execution
from onnx_reference import Execution, reference_execution
from onnxscript import ir
from paths import ROOT
from texts import random_ids
from torch import Tensor

from legokv.built.folder import MODEL_FILE, WEIGHTS_FILE, cache_root, read_engine_folder
from legokv.built.settings import EngineSettings
from legokv.checkpoint import load_weights
from legokv.chunks.pool import ChunkCache, PagePool
from legokv.engine.engine import Engine
from legokv.engine.executor import Executor
from legokv.engine.parts import EngineParts
from legokv.engine.request import GenerateRequest, Token
from legokv.errors import LaunchRefused
from legokv.export import onnx_file
from legokv.export.plugin_ops import TORCH_OPS, take_whole_products
from legokv.runners import Runner
from legokv.step.batch import StepBatch, step_batch
from legokv.step.sequence import chunk_sequence
from legokv.stores.tiers import open_tiers
from legokv.text.tokenizer import Tokenizer

DTYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "bfloat16": TensorProto.BFLOAT16,
}
# The standard ops a decoder may become: primitives that every TensorRT 10 imports.
PRIMITIVES = {"Add", "Cast", "Gather", "Gemm", "MatMul", "Mul", "Pow", "ReduceMean", "Reciprocal",
              "Reshape", "Sigmoid", "Split", "Sqrt", "Transpose"}  # fmt: skip
# Shares of the largest value. 16-bit types: both sides round each op, in another order.
TOLERANCES = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}
EXECUTIONS: dict[str, Callable[[Path], Execution]] = {
    "float32": reference_execution,
    "float16": reference_execution,
    "bfloat16": torch_execution,
}
NUM_PAGES = 64

Exported = Callable[..., Path]


class BothRunners:
    """Executes every step twice, by torch and by the file, and compares logits and pools."""

    def __init__(self, eager: Runner, graph: Runner, tolerance: float) -> None:
        self.num_pages, self.page_size = eager.num_pages, eager.page_size
        self.drawing, self.gives_drift = eager.drawing, eager.gives_drift
        self.no_attention = eager.no_attention
        self._eager, self._graph, self._tolerance = eager, graph, tolerance
        self.steps: list[tuple[int, int]] = []
        self.worst = 0.0

    def run(self, batch: StepBatch) -> Tensor:
        logits, expected = self._graph.run(batch), self._eager.run(batch)
        assert logits.dtype == expected.dtype == torch.float32
        self._compare(logits, expected)
        everything = range(self.num_pages), self.num_pages * self.page_size
        self._compare(self._graph.export_pages(*everything), self._eager.export_pages(*everything))
        self.steps.append((len(batch.input_ids), len(batch.logit_rows)))
        return expected

    def _compare(self, found: Tensor, expected: Tensor) -> None:
        found, expected = found.float(), expected.float()
        largest = float(expected.abs().max())
        torch.testing.assert_close(found, expected, rtol=0, atol=self._tolerance * largest)
        self.worst = max(self.worst, float((found - expected).abs().max()) / largest)

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        self._graph.copy_pages(sources, targets)
        self._eager.copy_pages(sources, targets)

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._graph.import_pages(pages, kv)
        self._eager.import_pages(pages, kv)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self._eager.export_pages(pages, num_tokens)


def engine_of_both(
    folder: Path, model: Path, dtype: str, cache_dir: Path | None = None
) -> tuple[Engine, BothRunners, GraphSession]:
    facts = read_engine_folder(folder)
    pool_tokens = NUM_PAGES * facts.page_size
    eager = Engine.open(
        folder, settings=EngineSettings(dtype=dtype, pool_tokens=pool_tokens, attention="torch")
    ).runner
    session = GraphSession(EXECUTIONS[dtype](model))
    graph = graph_runner(folder, dtype, session, NUM_PAGES)
    both = BothRunners(eager, graph, TOLERANCES[dtype])
    cache = ChunkCache(PagePool(NUM_PAGES, facts.page_size), frozenset)
    root = None if cache_dir is None else cache_root(cache_dir, facts)
    tiers = open_tiers(root, EngineSettings(), frozenset)
    executor = Executor(both, cache, tiers, max_step_tokens=64, max_queue_requests=8)
    parts = EngineParts(facts, Tokenizer.open(folder), both, executor, cache, tiers)
    return Engine(parts), both, session


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("llama", "float32"),
        ("llama", "float16"),
        ("llama", "bfloat16"),
        ("llama-untied", "float32"),
        ("llama-untied", "bfloat16"),
        ("llama-yarn", "float32"),
        ("qwen2", "float32"),
        ("qwen3", "float32"),
    ],
)
def test_compile_link_and_decode_through_the_file_equal_the_model(
    exported: Exported,
    tiny_engine_folder: Callable[[str], Path],
    name: str,
    dtype: str,
    record_property: Callable[[str, object], None],
) -> None:
    engine, both, _ = engine_of_both(tiny_engine_folder(name), exported(name, dtype), dtype)
    chunks = [engine.compile(random_ids(n, length)) for n, length in enumerate((40, 17, 33))]
    assert both.steps == [(40, 1), (17, 1), (33, 1)]
    prefill = engine.prefill([*chunks, random_ids(9, 5)])
    # Two of three chunks' 16 link tokens, and 5 fresh ones.
    assert both.steps[3:] == [(37, 1)]
    assert prefill.cached_tokens == 40 + 17 + 33 - 32
    steps = f"{len(both.steps)} steps of {name}'s {dtype} file executed"
    record_property("fact", f"{steps}: within {both.worst:.1e} of the model's largest value")


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_of_decodes_through_the_file_equals_the_model(
    exported: Exported, tiny_engine_folder: Callable[[str], Path], dtype: str
) -> None:
    model = exported("llama", dtype)
    engine, both, session = engine_of_both(tiny_engine_folder("llama"), model, dtype)
    chunk = engine.compile(random_ids(1, 30))
    prompts = [[chunk, random_ids(n, 3 + n)] for n in range(3)]
    jobs = [engine.submit(GenerateRequest(prompt, 4)) for prompt in prompts]
    answers = [[e.id for e in engine.results(job) if isinstance(e, Token)] for job in jobs]
    assert (3, 3) in both.steps
    assert {shapes["input_ids"] for profile, shapes in session.runs if profile} >= {(4,)}
    assert all(answers)


@pytest.mark.parametrize("dtype", DTYPES)
def test_stored_pages_imported_by_the_file_equal_the_model(
    exported: Exported, tiny_engine_folder: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    folder, model = tiny_engine_folder("llama"), exported("llama", dtype)
    first, _, _ = engine_of_both(folder, model, dtype, tmp_path)
    first.compile(random_ids(1, 40))
    engine, both, session = engine_of_both(folder, model, dtype, tmp_path)
    chunk = engine.chunk(random_ids(1, 40))
    engine.prefill([chunk, random_ids(2, 4)])
    assert engine.executor.counters.loaded_chunks == 1
    assert [shapes["import_pages"] for _, shapes in session.runs] == [(3,)]
    assert both.steps == [(4, 1)]


def test_both_ways_to_execute_a_file_agree(
    exported: Exported, tiny_engine_folder: Callable[[str], Path]
) -> None:
    model, folder = exported("llama", "float32"), tiny_engine_folder("llama")
    generator = torch.Generator().manual_seed(1)
    sizes = {"T": 3, "B": 1, "P": 1, "N": 2, "M": 1}
    inputs = {
        binding.name: torch.randn(binding.sized(sizes), generator=generator)
        if binding.dtype == "float32"
        else torch.zeros(binding.sized(sizes), dtype=torch.int32)
        for binding in shape_of(folder, "float32").inputs
    }
    for name in ("positions", "key_positions", "slots"):
        inputs[name] = torch.arange(3, dtype=torch.int32)
    inputs["query_start"][1], inputs["pages"][0, 0, 3] = 3, 16
    names = [binding.name for binding in shape_of(folder, "float32").outputs]
    by_onnx, by_torch = (
        way(model)(names, inputs) for way in (reference_execution, torch_execution)
    )
    for one, other in zip(by_onnx, by_torch, strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_has_the_inputs_and_outputs_of_the_table(
    exported: Exported, tiny_engine_folder: Callable[[str], Path], dtype: str
) -> None:
    graph = onnx.load(exported("llama", dtype), load_external_data=False).graph
    expected = shape_of(tiny_engine_folder("llama"), dtype)
    for found, bindings in ((graph.input, expected.inputs), (graph.output, expected.outputs)):
        assert [edge(value) for value in found] == [
            (binding.name, {**DTYPES, "int32": TensorProto.INT32}[binding.dtype], binding.shape)
            for binding in bindings
        ]


def edge(value: onnx.ValueInfoProto) -> tuple[str, int, tuple[int | str, ...]]:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_param.replace(" ", "") or d.dim_value for d in tensor.shape.dim)
    return value.name, tensor.elem_type, shape


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_file_holds_primitives_and_one_of_each_plugin_a_layer(
    exported: Exported, dtype: str, record_property: Callable[[str, object], None]
) -> None:
    path = exported("llama", dtype)
    onnx.checker.check_model(str(path))
    nodes = onnx.load(path, load_external_data=False).graph.node
    ours = Counter(node.op_type for node in nodes if node.domain == "legokv")
    assert ours == {"KvImport": 3, "PackedLegoLinkAttention": 3}
    assert {node.op_type for node in nodes if node.domain == ""} <= PRIMITIVES
    weights = path.with_name(WEIGHTS_FILE).stat().st_size
    record_property("fact", f"{dtype}: {len(nodes)} nodes, of them {dict(ours)}; {weights:,} bytes")
    for node in nodes:
        if node.domain == "legokv":
            texts = {a.name: a.s.decode() for a in node.attribute if a.type == a.STRING}
            assert texts == {"plugin_version": "1", "plugin_namespace": "legokv"}


def attentions(model: Path) -> list[onnx.NodeProto]:
    nodes = onnx.load(model, load_external_data=False).graph.node
    return [node for node in nodes if node.op_type.endswith("Attention")]


@pytest.mark.parametrize("name", ["llama", "llama-untied", "qwen2"])
def test_attention_takes_one_input_where_q_k_and_v_are_parts_of_one_product(
    exported: Exported, tiny_engine_folder: Callable[[str], Path], name: str
) -> None:
    model = exported(name, "float32")
    config = read_engine_folder(tiny_engine_folder(name)).model
    graph = onnx.load(model, load_external_data=False).graph
    made_by = {output: node for node in graph.node for output in node.output}
    for layer, node in enumerate(attentions(model)):
        assert node.op_type == "PackedLegoLinkAttention"
        assert len(node.input) == 8
        numbers = {a.name: a.i for a in node.attribute if a.type == a.INT}
        assert numbers == {"num_heads": config.num_heads}
        whole = made_by[node.input[0]]
        assert whole.op_type == "Reshape"
        product = made_by[whole.input[0]]
        assert (product.op_type, product.input[1]) == ("Gemm", f"decoder.layers.{layer}.qkv.weight")
    # What is left is of the gate's product; nor does the file keep the sizes of the others' parts.
    assert [node.input[0] for node in graph.node if node.op_type == "Split"] == [
        node.output[0]
        for node in graph.node
        if node.op_type == "Gemm" and "gate_up" in node.input[1]
    ]
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read


def test_attention_takes_three_inputs_where_norms_stand_between_it_and_the_product(
    exported: Exported,
) -> None:
    for node in attentions(exported("qwen3", "float32")):
        assert node.op_type == "LegoLinkAttention"
        assert len(node.input) == 10
        assert [a.name for a in node.attribute if a.type == a.INT] == []


@pytest.mark.parametrize(
    ("axis", "parts", "num_inputs"),
    [(1, "qkv", 8), (1, "qvk", 10), (1, "qkq", 10), (2, "qkv", 10)],
)
def test_a_product_is_taken_whole_only_as_heads_of_q_then_k_then_v(
    axis: int, parts: str, num_inputs: int
) -> None:
    sizes = onnx.numpy_helper.from_array(np.array([4, 4, 4]), "sizes")
    shape: list[str | int] = ["T", 12, 12]
    tables = [f"table_{number}" for number in range(7)]
    nodes = [
        onnx.helper.make_node("Split", ["whole", "sizes"], list("qkv"), axis=axis),
        onnx.helper.make_node(
            "LegoLinkAttention", [*parts, *tables], ["out", "pool"], domain="legokv", scale=1.0
        ),
    ]
    edges = (["whole", *tables], ["out", "pool"])
    inputs, outputs = (
        [onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in names]
        for names in edges
    )
    graph = onnx.helper.make_graph(nodes, "small", inputs, outputs, [sizes])
    known = [onnx.helper.make_tensor_value_info("q", TensorProto.FLOAT, ["T", 4, 12])]
    graph.value_info.extend(known)
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("legokv", 1)]
    model = ir.from_proto(onnx.helper.make_model(graph, opset_imports=opsets))
    take_whole_products(model)
    (attention,) = (node for node in model.graph if node.domain == "legokv")
    assert len(attention.inputs) == num_inputs
    assert attention.op_type.startswith("Packed") == (num_inputs == 8)
    # A split that someone reads stays.
    assert len(model.graph) == (1 if num_inputs == 8 else 2)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_one_input_gives_the_very_numbers_of_three(
    exported: Exported,
    tiny_engine_folder: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    folder, whole = tiny_engine_folder(name), exported(name, "bfloat16")
    # As exporters from before: their files have a split in front of every attention.
    monkeypatch.setattr(onnx_file, "take_whole_products", lambda model: None)
    apart = export_engine(folder, "bfloat16", tmp_path)
    assert {node.op_type for node in attentions(apart)} == {"LegoLinkAttention"}
    logits, pools = [], []
    for model in (whole, apart):
        runner = graph_runner(folder, "bfloat16", GraphSession(torch_execution(model)), NUM_PAGES)
        sequence = chunk_sequence(tuple(random_ids(3, 40)), [4, 1, 7], runner.page_size)
        logits.append(runner.run(step_batch([sequence.next(40)])))
        pools.append(runner.export_pages([4, 1, 7], 40))
    assert torch.equal(*logits)
    assert torch.equal(*pools)


def test_a_product_that_contradicts_its_number_of_heads_is_refused_with_the_numbers() -> None:
    shape, index = (1, 2, 16, 1, 64), torch.zeros(3, dtype=torch.int32)
    tables = (index, index, index, index[:2], index.new_zeros(1, 1, 4), torch.ones(32))
    qkv, pool = torch.zeros(3, 4, 64), torch.zeros(shape)
    words = "qkv has 4 heads of 64, but 3 of q and twice 1 KV heads of 64 make 5"
    with pytest.raises(LaunchRefused, match=words):
        TORCH_OPS["PackedLegoLinkAttention"](qkv, pool, *tables, 3, 0.125)
    with pytest.raises(LaunchRefused, match=words):
        TORCH_OPS["PackedScoredAttention"](qkv, pool, *tables, index[:1], 3, 0.125)


def test_where_a_launch_imports_the_file_has_neither_nodes_nor_inputs_for_it(
    exported: Exported, tiny_engine_folder: Callable[[str], Path]
) -> None:
    folder = tiny_engine_folder("llama")
    path = exported("llama", "bfloat16", "stream")
    graph = onnx.load(path, load_external_data=False).graph
    ours = Counter(node.op_type for node in graph.node if node.domain == "legokv")
    assert ours == {"PackedLegoLinkAttention": 3}
    bindings = shape_of(folder, "bfloat16", "stream").inputs
    assert [value.name for value in graph.input] == [binding.name for binding in bindings]
    assert not [name for name in (b.name for b in bindings) if name.startswith("import_")]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["llama", "llama-untied"])
def test_every_weight_is_stored_once_outside_the_file(
    exported: Exported, tiny_engine_folder: Callable[[str], Path], name: str, dtype: str
) -> None:
    path, folder = exported(name, dtype), tiny_engine_folder(name)
    weights = load_weights(folder, read_engine_folder(folder).model, getattr(torch, dtype))
    stored = onnx.load(path, load_external_data=False).graph.initializer
    matrices = [tensor for tensor in stored if len(tensor.dims) == 2]
    expected = [list(weight.shape) for weight in weights.values() if weight.dim() == 2]
    assert sorted(list(tensor.dims) for tensor in matrices) == sorted(expected)
    assert all(tensor.data_location == TensorProto.EXTERNAL for tensor in matrices)
    num_bytes = sum(weight.numel() * weight.element_size() for weight in weights.values())
    assert path.with_name(WEIGHTS_FILE).stat().st_size < num_bytes + 4096


def test_nothing_in_the_file_tells_where_it_was_made(exported: Exported) -> None:
    content = exported("llama", "float32").read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content
    assert b".py" not in content


def test_the_files_are_called_as_the_engine_folder_says(exported: Exported) -> None:
    folder = exported("llama", "float32").parent
    assert sorted(path.name for path in folder.iterdir()) == [MODEL_FILE, WEIGHTS_FILE]
