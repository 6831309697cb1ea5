"""The exported scoring pass, executed on a CPU, weighs keys as the model's own pass does."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from graph_session import shape_of
from onnx_by_torch import torch_execution
from onnx_reference import Execution, reference_execution
from texts import random_ids
from torch import Tensor

from legokv.built.folder import read_engine_folder
from legokv.built.settings import EngineSettings
from legokv.checkpoint import load_weights
from legokv.engine.engine import Engine
from legokv.export import export_scoring_onnx
from legokv.model.config import scoring_layers
from legokv.model.decoder import decoder_from_weights
from legokv.runners.attention_forms import CPU
from legokv.runners.key_mass import KeyMass
from legokv.step.batch import StepBatch
from legokv.step.graph import STEP_INPUTS, ScoringShape

# Shares of the largest value. 16-bit types: both sides round each op, in another order.
TOLERANCES = {"float32": 2e-5, "float16": 1e-2, "bfloat16": 6e-2}
EXECUTIONS: dict[str, Callable[[Path], Execution]] = {
    "float32": reference_execution,
    "float16": reference_execution,
    "bfloat16": torch_execution,
}
NUM_ROWS = 7


class Pass:
    """A guided request's first pass over a tiny model: its batch, and its pools before it."""

    def __init__(self, folder: Path, dtype: str) -> None:
        settings = EngineSettings(dtype=dtype, pool_tokens=512, attention="torch")
        self.engine = Engine.open(folder, settings=settings)
        self.runner = self.engine.runner
        self.mass: Tensor
        of_runner = self.runner.attention_mass

        def attention_mass(batch: StepBatch, num_rows: int) -> Tensor:
            assert num_rows == NUM_ROWS
            self.batch, self.pools = batch, [pool.clone() for pool in self.runner.pools]
            self.mass = of_runner(batch, num_rows)
            self.pools_after = [pool.clone() for pool in self.runner.pools]
            return self.mass

        self.runner.attention_mass = attention_mass
        chunks = [self.engine.compile(random_ids(n, length)) for n, length in enumerate((40, 17))]
        self.engine.prefill([*chunks, random_ids(9, NUM_ROWS)], mode="guided", link_tokens=4)

    def key_mass(self, layers: range) -> KeyMass:
        return KeyMass(self.batch, NUM_ROWS, layers, self.runner.page_size, CPU)

    def inputs(self, shape: ScoringShape) -> dict[str, Tensor]:
        """What the graph reads: the pass's tables, its scoring rows, and the pools before it."""
        names = [each.name for each in STEP_INPUTS if each.name != "logit_rows"]
        tables = {name: torch.from_numpy(getattr(self.batch, name)) for name in names}
        scoring = torch.from_numpy(np.array([NUM_ROWS], np.int32))
        pools = zip((each.name for each in shape.pools), self.pools, strict=False)
        return {**tables, "scoring": scoring, **dict(pools)}


def exported(folder: Path, dtype: str, layers: range, target: Path) -> tuple[Path, ScoringShape]:
    model = read_engine_folder(folder).model
    decoder = decoder_from_weights(model, load_weights(folder, model, getattr(torch, dtype)))
    shape = ScoringShape(shape_of(folder, dtype), layers)
    return export_scoring_onnx(decoder, shape, target), shape


def near(found: Tensor, expected: Tensor, dtype: str) -> None:
    largest = float(expected.float().abs().max())
    atol = TOLERANCES[dtype] * largest
    torch.testing.assert_close(found.float(), expected.float(), rtol=0, atol=atol)


@pytest.mark.parametrize("dtype", EXECUTIONS)
def test_the_exported_pass_gives_the_scores_of_the_model_s_own(
    tiny_engine_folder: Callable[[str], Path], tmp_path: Path, dtype: str
) -> None:
    folder = tiny_engine_folder("llama")
    done = Pass(folder, dtype)
    config = done.engine.facts.model
    layers = scoring_layers(config.num_layers)
    path, shape = exported(folder, dtype, layers, tmp_path)
    mass, *pools = EXECUTIONS[dtype](path)([b.name for b in shape.outputs], done.inputs(shape))
    assert tuple(mass.shape) == (1, *done.batch.pages.shape[1:2], done.runner.page_size)
    total = done.key_mass(layers)
    total.add(mass)
    near(total.mean(config.num_heads), done.mass, dtype)
    assert float(total.mean(config.num_heads).sum()) == pytest.approx(1, abs=0.02)
    for found, expected in zip(pools, done.pools_after, strict=False):
        near(found, expected, dtype)


@pytest.mark.parametrize("name", ["llama", "llama-yarn", "qwen2", "qwen3"])
def test_a_pass_of_several_layers_adds_up_what_each_attends_to(
    tiny_engine_folder: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    folder, layers = tiny_engine_folder(name), range(1, 3)
    done = Pass(folder, "float32")
    path, shape = exported(folder, "float32", layers, tmp_path)
    found, *pools = torch_execution(path)([b.name for b in shape.outputs], done.inputs(shape))
    wanted, given = done.key_mass(layers), done.key_mass(layers)
    with done.runner.attention.step(done.batch, done.pools, wanted) as attend:
        ids = torch.from_numpy(done.batch.input_ids)
        done.runner.decoder.attend_first(layers.stop, ids, done.pools, attend)
    given.add(found)
    near(given.mean(1), wanted.mean(1), "float32")
    assert len(pools) == layers.stop
    for pool, expected in zip(pools, done.pools, strict=False):
        near(pool, expected, "float32")


def test_the_file_has_a_scoring_node_a_layer_and_the_weights_of_no_other_layers(
    tiny_engine_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    path, shape = exported(tiny_engine_folder("llama"), "bfloat16", range(1, 2), tmp_path)
    graph = onnx.load(path, load_external_data=False).graph
    ours = Counter(node.op_type for node in graph.node if node.domain == "legokv")
    assert ours == {"PackedLegoLinkAttention": 1, "PackedScoredAttention": 1}
    assert [value.name for value in graph.input] == [b.name for b in shape.inputs]
    assert [value.name for value in graph.output] == [b.name for b in shape.outputs]
    matrices = [tensor.name for tensor in graph.initializer if len(tensor.dims) == 2]
    # The embedding, the first layer's four, and what makes the second's query, key and value.
    assert len(matrices) == 1 + 4 + 1, matrices
