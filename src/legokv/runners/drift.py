"""The drift of a step's documents, put before the attention of each of its layers."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from legokv.model.decoder import Attention
from legokv.ops.drift import DriftTables
from legokv.ops.rotary import cos_sin
from legokv.runners.attention_forms import Rotation, by_layer
from legokv.step.batch import StepBatch

Move = Callable[[Tensor, Tensor, Tensor, DriftTables], None]
"""A form's `drift`."""


def drifting(
    attend: Attention,
    move: Move,
    batch: StepBatch,
    rotations: Sequence[Rotation],
    page_size: int,
    device: torch.device,
) -> Attention:
    """The same attention behind the step's drifts; itself if the step has none."""
    if not batch.drifts:
        return attend

    def tables_of(rotation: Rotation) -> DriftTables:
        return drift_tables(batch, rotation, page_size, device)

    tables = by_layer(rotations, tables_of)

    def moved(layer: int, q: Tensor, k: Tensor, v: Tensor, pool: Tensor) -> tuple[Tensor, Tensor]:
        move(pool, k, v, tables[layer])
        return attend(layer, q, k, v, pool)

    return moved


def drift_tables(
    batch: StepBatch, rotation: Rotation, page_size: int, device: torch.device
) -> DriftTables:
    """Of all documents of a step that has one or more, in layers of one rotation."""
    drifts, documents, first_page = batch.drifts, [], 0
    for drift in drifts:
        documents.append((drift.first_row, drift.num_rows, first_page, len(drift.pages)))
        first_page += len(drift.pages)
    pages = np.concatenate([drift.pages for drift in drifts]).T
    keys = [batch.key_positions[d.first_row : d.first_row + d.num_rows] for d in drifts]
    return DriftTables(
        torch.tensor(documents, dtype=torch.int32),
        torch.from_numpy(np.concatenate([drift.stored for drift in drifts])).to(device),
        torch.from_numpy(np.ascontiguousarray(pages[:2])).to(device),
        _turns(torch.from_numpy(np.concatenate(keys)).to(device), rotation),
        _turns(torch.from_numpy(pages[2]).to(device), rotation),
        _turns(torch.arange(page_size, device=device), rotation),
    )


def _turns(positions: Tensor, rotation: Rotation) -> Tensor:
    return torch.cat(cos_sin(positions, rotation.inv_freq), -1)
