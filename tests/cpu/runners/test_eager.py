"""The eager runner by the kernels, in their host form as on a GPU, equals it by torch's form."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT

from legokv.built.folder import read_engine_folder
from legokv.checkpoint import load_weights
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.gpu import Launchers
from legokv.model.config import scoring_layers
from legokv.runners.attention_forms import CPU, KernelForm, TorchForm
from legokv.runners.eager import EagerRunner
from legokv.runners.packed_weights import PackedLinear
from legokv.step.batch import Piece, StepBatch, step_batch

OUT = ROOT / "out"
NUM_PAGES, PAGE_SIZE = 6, 16


@pytest.fixture(scope="module")
def launchers() -> Launchers:
    folder = build_host_kernels(PluginBuild(OUT), print)
    return Launchers(folder / "liblegokv_host_kernels.so")


@pytest.fixture(scope="module")
def runners(
    launchers: Launchers, tiny_engine_folder: Callable[[str], Path]
) -> tuple[EagerRunner, EagerRunner]:
    folder = tiny_engine_folder("llama-wide")
    model = read_engine_folder(folder).model
    weights = load_weights(folder, model, torch.float32)
    sizes = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}
    kernels = KernelForm(launchers, model, CPU)
    plain = EagerRunner(model, weights, TorchForm(model), **sizes)
    return plain, EagerRunner(model, weights, kernels, **sizes)


def piece(page: int, first: int, num_tokens: int) -> Piece:
    """Tokens from position `first` on, alone in one page."""
    positions = np.arange(first, first + num_tokens, dtype=np.int32)
    table = np.array([(page, 0, 0, PAGE_SIZE)], np.int32)
    return Piece(positions + 7 * page, positions, positions, page * PAGE_SIZE + positions, table)


def steps() -> list[StepBatch]:
    """Two sequences: both from the start, then a token of one and three of the other."""
    return [
        step_batch([piece(2, 0, 9), piece(4, 0, 5)]),
        step_batch([piece(2, 9, 1), piece(4, 5, 3)]),
    ]


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


def test_prefill_and_decode_by_the_kernels_equal_torch(
    runners: tuple[EagerRunner, EagerRunner],
) -> None:
    plain, kernel = runners
    for batch in steps():
        assert_close(kernel.run(batch), plain.run(batch))
    assert_close(kernel.export_pages([2, 4], 32), plain.export_pages([2, 4], 32))


def test_pages_are_imported_by_the_kernel_copied_and_read_as_by_torch(
    runners: tuple[EagerRunner, EagerRunner],
) -> None:
    plain, kernel = runners
    stored = torch.randn(3, 2, 21, 2, 64, generator=torch.Generator().manual_seed(3))
    for runner in runners:
        runner.import_pages([5, 1], stored)
        runner.copy_pages([5], [0])
    torch.testing.assert_close(kernel.export_pages([5, 1], 21), stored)
    assert torch.equal(kernel.export_pages([0], 16), plain.export_pages([0], 16))


@pytest.mark.parametrize(("device", "num_packed"), [("cpu", 13), ("meta", 0)])
def test_bfloat16_layers_are_packed_on_a_cpu_only(
    tiny_engine_folder: Callable[[str], Path], device: str, num_packed: int
) -> None:
    folder = tiny_engine_folder("llama-wide")
    model = read_engine_folder(folder).model
    weights = load_weights(folder, model, torch.bfloat16)
    place = torch.device(device)
    runner = EagerRunner(model, weights, TorchForm(model), place, num_pages=1, page_size=PAGE_SIZE)
    packed = [layer for layer in runner.decoder.modules() if isinstance(layer, PackedLinear)]
    assert len(packed) == num_packed
    assert {pool.device.type for pool in runner.pools} == {device}


@pytest.mark.parametrize(
    ("num_layers", "scoring"),
    [(30, range(4, 8)), (16, range(2, 4)), (32, range(4, 8)), (4, range(1)), (1, range(1))],
)
def test_the_first_quarter_of_the_layers_is_asked_and_its_latter_half_scores(
    num_layers: int, scoring: range
) -> None:
    assert scoring_layers(num_layers) == scoring
