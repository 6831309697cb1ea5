"""A runner that executes model.onnx on the CPU: onnx's reference evaluator, our ops' own bodies.

Stored pages arrive through the graph's import inputs, at the next step.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from torch import Tensor

from legokv.batch import StepBatch
from legokv.bindings import GraphShape, step_arrays
from legokv.export.plugin_ops import DOMAIN, TORCH_OPS, plugin_schemas
from legokv.runners.page_store import PageStore, page_blocks


class KvImport(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs, plugin_version, plugin_namespace):
        assert (plugin_version, plugin_namespace) == ("1", "legokv")
        return (
            TORCH_OPS["KvImport"](*(torch.from_numpy(np.array(given)) for given in inputs)).numpy(),
        )


class LegoLinkAttention(OpRun):
    op_domain = DOMAIN

    def _run(self, *inputs, scale, plugin_version, plugin_namespace):
        assert (plugin_version, plugin_namespace) == ("1", "legokv")
        tensors = [torch.from_numpy(np.array(given)) for given in inputs]
        return tuple(t.numpy() for t in TORCH_OPS["LegoLinkAttention"](*tensors, scale))


class GraphRunner:
    """A `legokv.runners.Runner` over an ONNX file; float32 and float16."""

    def __init__(self, model: Path, graph: GraphShape, num_pages: int) -> None:
        plugin_schemas()
        self.num_pages, self.page_size = num_pages, graph.page_size
        self._graph = graph
        self._session = ReferenceEvaluator(str(model), new_ops=[KvImport, LegoLinkAttention])
        self.store = PageStore(graph, num_pages, torch.device("cpu"))
        self._arriving: list[tuple[Sequence[int], Tensor]] = []
        self.imported_pages = 0

    def run(self, batch: StepBatch) -> Tensor:
        logits, *pools = self._session.run(None, step_arrays(batch) | self._pools_and_imports())
        for pool, after in zip(self.store.pools, pools, strict=True):
            pool.copy_(torch.from_numpy(after))
        return torch.from_numpy(logits)

    def _pools_and_imports(self) -> dict[str, np.ndarray]:
        numbers = [page for pages, _ in self._arriving for page in pages]
        blocks = [page_blocks(kv, len(pages), self.page_size) for pages, kv in self._arriving]
        none = torch.empty(self._graph.num_layers, 0, *self._graph.page, dtype=self.store.dtype)
        joined = torch.cat([none, *blocks], dim=1)
        self.imported_pages += len(numbers)
        self._arriving.clear()
        named = zip(self._graph.pools, self.store.pools, strict=True)
        arriving = zip(self._graph.import_blocks, joined, strict=True)
        return {
            "import_pages": np.array(numbers, np.int32),
            **{binding.name: pool.numpy() for binding, pool in named},
            **{binding.name: block.numpy() for binding, block in arriving},
        }

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        self._arriving.append((pages, kv))

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        arriving = {page for pages, _ in self._arriving for page in pages}
        assert not arriving & set(sources), "the test copies no page before it has arrived"
        self.store.copy_pages(sources, targets)

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        return self.store.export_pages(pages, num_tokens)
