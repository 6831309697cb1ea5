"""Layers of two kinds in one model: each form of attention treats each layer as its kind says."""

from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from plain_attention import plain_causal_attention
from torch import Tensor

from legokv.checkpoint import load_weights, read_model_config
from legokv.export.step_graph import StepGraph
from legokv.kernels.build_cpu import build_native_library
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.cpu import NativeCalls
from legokv.kernels.gpu import Launchers
from legokv.kernels.native_library import NativeLibrary
from legokv.model.config import LayerKind, ModelConfig, RopeConfig
from legokv.model.decoder import decoder_from_weights
from legokv.runners.attention_forms import (
    CPU,
    AttentionForm,
    KernelForm,
    NativeForm,
    TorchForm,
    by_layer,
    rotations_of,
)
from legokv.runners.eager import EagerRunner
from legokv.step.batch import Piece, StepBatch, step_batch
from legokv.step.graph import STEP_INPUTS

PAGE_SIZE, NUM_TOKENS = 16, 40
NUM_PAGES = -(-NUM_TOKENS // PAGE_SIZE)
# float32 sums in another order over three layers; the logits are of size 10.
CLOSE = {"atol": 2e-4, "rtol": 2e-4}


class TwoKinds(ModelConfig):
    """A model whose middle layer turns far faster and scales its scores otherwise."""

    @property
    def layers(self) -> tuple[LayerKind, ...]:
        other = RopeConfig(theta=20.0, variant="yarn", attention_factor=1.5, factor=2.0)
        kinds = [LayerKind(self.rope)] * self.num_layers
        kinds[1] = LayerKind(other)
        return tuple(kinds)


Model = tuple[ModelConfig, dict[str, Tensor]]


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Callable[[str], Path]) -> Model:
    folder = tiny_checkpoint("llama-wide")
    plain = read_model_config(folder)
    config = TwoKinds(**{field.name: getattr(plain, field.name) for field in fields(plain)})
    return config, load_weights(folder, plain, torch.float32)


def prompt() -> StepBatch:
    """One prompt from position 0, over pages in another order than the pool's."""
    positions = np.arange(NUM_TOKENS, dtype=np.int32)
    pages = np.arange(NUM_PAGES, dtype=np.int32)[::-1]
    slots = pages[positions // PAGE_SIZE] * PAGE_SIZE + positions % PAGE_SIZE
    table = [(page, 0, n * PAGE_SIZE, PAGE_SIZE) for n, page in enumerate(pages)]
    return step_batch(
        [Piece(positions + 9, positions, positions, slots, np.array(table, np.int32))]
    )


@torch.inference_mode()
def expected(config: ModelConfig, weights: dict[str, Tensor]) -> Tensor:
    decoder = decoder_from_weights(config, weights)
    batch, pools = prompt(), [torch.empty(0)] * config.num_layers
    ids, rows = (torch.from_numpy(array) for array in (batch.input_ids, batch.logit_rows))
    logits: Tensor = decoder(ids, rows, pools, plain_causal_attention(config))[0]
    return logits


def native_form(config: ModelConfig) -> AttentionForm:
    calls = NativeCalls(NativeLibrary(build_native_library(print)))
    return NativeForm(calls, config, torch.float32)


def kernel_form(config: ModelConfig) -> AttentionForm:
    folder = build_host_kernels(PluginBuild(ROOT / "out"), print)
    return KernelForm(Launchers(folder / "liblegokv_host_kernels.so"), config, CPU)


@pytest.mark.parametrize("form", [TorchForm, native_form, kernel_form])
def test_each_form_attends_as_the_layer_s_kind_says(
    model: Model, form: Callable[[ModelConfig], AttentionForm]
) -> None:
    config, weights = model
    runner = EagerRunner(config, weights, form(config), num_pages=NUM_PAGES, page_size=PAGE_SIZE)
    torch.testing.assert_close(runner.run(prompt()), expected(config, weights), **CLOSE)


@torch.inference_mode()
def test_the_graph_that_is_exported_attends_as_the_layer_s_kind_says(model: Model) -> None:
    config, weights = model
    graph = StepGraph(decoder_from_weights(config, weights))
    batch = prompt()
    inputs = [torch.from_numpy(getattr(batch, binding.name)) for binding in STEP_INPUTS]
    page = (2, PAGE_SIZE, config.num_kv_heads, config.head_size)
    pools = [torch.zeros(NUM_PAGES, *page) for _ in range(config.num_layers)]
    blocks = [torch.zeros(0, *page) for _ in pools]
    logits, _ = graph(*inputs, pools, torch.zeros(0, dtype=torch.int32), blocks)
    torch.testing.assert_close(logits, expected(config, weights), **CLOSE)


def test_the_kinds_differ_enough_to_be_told_apart(model: Model) -> None:
    config, weights = model
    alike = ModelConfig(**{field.name: getattr(config, field.name) for field in fields(config)})
    assert alike.layers == (LayerKind(config.rope),) * 3
    assert (expected(config, weights) - expected(alike, weights)).abs().max() > 0.1


def test_what_a_step_needs_is_made_once_for_layers_of_one_kind(model: Model) -> None:
    made = by_layer(rotations_of(model[0]), lambda rotation: [rotation.scale])
    assert made[0] is made[2] is not made[1]
