"""What the graph reads and gives: names, types and shapes, once. Nothing here imports a framework.

The ONNX file's inputs and outputs, the TensorRT profiles and a runner's buffers are made from this
table, and `StepBatch` has its inputs as fields.

| symbol | counts                                                     |
|--------|------------------------------------------------------------|
| T      | tokens in the step                                         |
| B, B+1 | sequences in the step, and the ends of their token ranges  |
| P      | pages that the sequence with the longest table can see     |
| N      | pages of the pool                                          |
| M      | pages that arrive from a lower tier in this step           |
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from legokv.model.config import ModelConfig
from legokv.model.dtypes import Dtypes, Int32
from legokv.step.batch import StepBatch

SYMBOLS = ("T", "B", "P", "N", "M")
AFTER_B = "B+1"

ImportBy = Literal["stream", "plugin"]
"""What puts arriving pages into the pools: a launch before the step, or a node of the graph."""
IMPORTS: tuple[ImportBy, ...] = get_args(ImportBy)

ELEMENT_BYTES = {"int32": 4, "float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Binding:
    """One tensor at the graph's edge; a dimension is a number or one of the symbols above.

    `alias_of` names the input at whose address an output lies.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    alias_of: str | None = None

    def sized(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape with `sizes` of the symbols put in; B+1 follows from B."""
        return tuple(d if isinstance(d, int) else _size_of(d, sizes) for d in self.shape)


STEP_INPUTS = (
    Binding("input_ids", "int32", ("T",)),
    Binding("positions", "int32", ("T",)),
    Binding("key_positions", "int32", ("T",)),
    Binding("slots", "int32", ("T",)),
    Binding("query_start", "int32", (AFTER_B,)),
    Binding("pages", "int32", ("B", "P", 4)),
    Binding("logit_rows", "int32", ("B",)),
)
SCORING = Binding("scoring", "int32", ("B",))
IMPORT_PAGES = Binding("import_pages", "int32", ("M",))


@dataclass(frozen=True)
class GraphShape:
    """The sizes a graph is made for, the same in every step."""

    num_layers: int
    vocab_size: int
    num_kv_heads: int
    head_size: int
    page_size: int
    dtypes: Dtypes
    imports: ImportBy = "stream"

    @property
    def page(self) -> tuple[int, int, int, int]:
        """One page of one layer: K and V, slots, KV heads, head size."""
        return (2, self.page_size, self.num_kv_heads, self.head_size)

    @property
    def page_elements(self) -> int:
        return 2 * self.page_size * self.num_kv_heads * self.head_size

    @property
    def pools(self) -> tuple[Binding, ...]:
        return self._per_layer("pool", "N")

    @property
    def import_blocks(self) -> tuple[Binding, ...]:
        return self._per_layer("import_block", "M")

    @property
    def arriving(self) -> tuple[Binding, ...]:
        """The inputs that arriving pages come by, none where a launch of its own imports them."""
        return (IMPORT_PAGES, *self.import_blocks) if self.imports == "plugin" else ()

    @property
    def inputs(self) -> tuple[Binding, ...]:
        """All inputs, in the graph's order."""
        return (*STEP_INPUTS, *self.pools, *self.arriving)

    @property
    def outputs(self) -> tuple[Binding, ...]:
        """The logits, then the pools after the step, each where its pool was."""
        logits = Binding("logits", "float32", ("B", self.vocab_size))
        after = self._per_layer("pool_out", "N")
        return (
            logits,
            *(
                Binding(out.name, out.dtype, out.shape, alias_of=pool.name)
                for out, pool in zip(after, self.pools, strict=True)
            ),
        )

    def _per_layer(self, name: str, count: str) -> tuple[Binding, ...]:
        layers = range(self.num_layers)
        return tuple(Binding(f"{name}_{at}", self.dtypes.kv, (count, *self.page)) for at in layers)


@dataclass(frozen=True)
class ScoringShape:
    """The edge of the graph that says what a step's last rows attend to, in some of its `layers`.

    It runs the model up to the last of these, over pools that have all their pages already.
    """

    graph: GraphShape
    layers: range

    @property
    def dtypes(self) -> Dtypes:
        return self.graph.dtypes

    @property
    def tables(self) -> tuple[Binding, ...]:
        """All inputs but the pools: `scoring` is how many of each sequence's rows score keys."""
        return (*(each for each in STEP_INPUTS if each.name != "logit_rows"), SCORING)

    @property
    def pools(self) -> tuple[Binding, ...]:
        return self.graph.pools[: self.layers.stop]

    @property
    def inputs(self) -> tuple[Binding, ...]:
        """All inputs, in the graph's order."""
        return (*self.tables, *self.pools)

    @property
    def outputs(self) -> tuple[Binding, ...]:
        """Each slot's mass, summed over the layers, then the pools after the pass."""
        _, *after = self.graph.outputs
        mass = Binding("mass", "float32", ("B", "P", self.graph.page_size))
        return (mass, *after[: self.layers.stop])


def graph_shape(
    model: ModelConfig, dtypes: Dtypes, page_size: int, imports: ImportBy = "stream"
) -> GraphShape:
    """The sizes of `model`'s graph with weights and pools of these types."""
    return GraphShape(
        num_layers=model.num_layers,
        vocab_size=model.vocab_size,
        num_kv_heads=model.num_kv_heads,
        head_size=model.head_size,
        page_size=page_size,
        dtypes=dtypes,
        imports=imports,
    )


def step_arrays(batch: StepBatch) -> dict[str, Int32]:
    """A batch's arrays by the names of the graph's inputs."""
    return {binding.name: getattr(batch, binding.name) for binding in STEP_INPUTS}


def batch_sizes(batch: StepBatch, num_import_pages: int, num_pages: int) -> dict[str, int]:
    """How large each symbol is in a step that computes `batch`."""
    num_sequences, table_rows, _ = batch.pages.shape
    return {
        "T": len(batch.input_ids),
        "B": num_sequences,
        "P": table_rows,
        "N": num_pages,
        "M": num_import_pages,
    }


def _size_of(symbol: str, sizes: Mapping[str, int]) -> int:
    return sizes["B"] + 1 if symbol == AFTER_B else sizes[symbol]
