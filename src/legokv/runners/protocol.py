"""What the rest of the system asks of a runner."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from legokv.errors import LegokvError
from legokv.kernels.native_library import NativeLibrary
from legokv.step.batch import StepBatch


class Runner(Protocol):
    """Owns the model's weights and the pools on `device`; L layers, pages below `num_pages`."""

    num_pages: int
    page_size: int
    device: torch.device
    description: str
    """What computes its attention, in words."""
    no_attention: str | None
    """Why it has no `attention_mass`, to end a sentence, with the next step; None where it has."""
    gives_drift: bool
    """Whether its steps move what drifts."""
    drawing: NativeLibrary | None
    """What draws tokens of its logits where they lie; None where torch does."""
    lost: LegokvError | None
    """Why it can compute nothing more, whatever is asked; None while it can."""

    def run(self, batch: StepBatch) -> Tensor:
        """Compute one step, K and V going to the pools: logits [B, V], on the device.

        In float32, or where it has `drawing` in bfloat16 if that is the last product's type.
        Any error ends that step's requests alone: what the next steps need must be whole.
        """

    def attention_mass(self, batch: StepBatch, num_rows: int) -> Tensor:
        """Compute the first layers of a step of one sequence, all its keys listed from position 0.

        float32 [n], on the host: the attention that its last `num_rows` rows pay to each of n keys,
        the mean over the last of these layers (`scoring_layers`), heads and rows.
        """

    def copy_pages(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Copy whole pages in every layer, before the next step."""

    def import_pages(self, pages: Sequence[int], kv: Tensor) -> None:
        """Put stored kv [L, 2, n, G, D] into `pages`, token i in slot i % S of page i // S."""

    def export_pages(self, pages: Sequence[int], num_tokens: int) -> Tensor:
        """The first `num_tokens` tokens of `pages` as [L, 2, n, G, D] on the host."""
