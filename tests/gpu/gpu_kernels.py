"""Running the launchers over memory that gives away whoever reads or writes the wrong place."""

from dataclasses import dataclass, replace

import torch
from attention_cases import Inputs
from guarded import Guarded
from torch import Tensor

from legokv.kernels.gpu import (
    INDEX_TABLES,
    AttentionTables,
    Launchers,
    Regime,
    Room,
    attention_arguments,
)

# Absolute, for values of about 1. The plain kernel computes in float32 and rounds once, at the end;
# those on tensor cores also round the rotated query and the weights to 16 bits.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
TENSOR_CORE_TOLERANCE = {torch.float32: 2e-5, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}
# One unit in the last place of a rotated key: its sine and cosine are of another library.
KEY_TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@dataclass(frozen=True)
class Kernels:
    """A loaded library and the device its pointers belong to."""

    launchers: Launchers
    device: torch.device

    def stream(self) -> int:
        """The current CUDA stream's handle; the host form has none."""
        return torch.cuda.current_stream().cuda_stream if self.device.type == "cuda" else 0

    def attend(self, inputs: Inputs, regime: Regime) -> tuple[Tensor, Tensor]:
        """Output and pool, on the device; output and workspace start as NaNs between guards."""
        given = on_device(inputs, self.device)
        pool = given.pool.clone()
        out = attend_in_place(self, replace(given, pool=pool), regime)
        return out, pool


def attend_in_place(kernels: Kernels, given: Inputs, regime: Regime) -> Tensor:
    """The output, K and V written into given.pool; whoever writes past an end is found out."""
    arguments = attention_arguments(given.q, given.k, given.v, given.pool, given.tables)
    arguments.regime = regime
    out = Guarded(given.q.shape, given.q.dtype, kernels.device)
    size = kernels.launchers.workspace_bytes(arguments) // 4
    workspace = Guarded((size,), torch.float32, kernels.device)
    kernels.launchers.legolink_attention(arguments, out.inner, workspace.inner, kernels.stream())
    out.check("the output")
    workspace.check("the workspace")
    return out.inner


def on_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs, each tensor on `device`."""
    moved = {name: getattr(inputs, name).to(device) for name in ("q", "k", "v", "pool")}
    return Inputs(**moved, tables=tables_on_device(inputs.tables, device))


def tables_on_device(tables: AttentionTables, device: torch.device) -> AttentionTables:
    """Of a step without shared tiles; these are listed from its tables on the host."""
    names = [*INDEX_TABLES, "inv_freq"]
    return replace(tables, **{name: getattr(tables, name).to(device) for name in names})


def with_shared_tiles(kernels: Kernels, inputs: Inputs, room: Room | None = None) -> Inputs:
    """The inputs on the device, with what their sequences have in common listed; there is some."""
    index = {name: getattr(inputs.tables, name) for name in INDEX_TABLES}
    given = on_device(inputs, kernels.device)
    found = kernels.launchers.list_shared(index, given.q.shape[1], given.pool, room)
    assert found is not None
    return replace(given, tables=replace(given.tables, pages=found[0], shared=found[1]))


def tolerance(dtype: torch.dtype, regime: Regime) -> float:
    return (TOLERANCE if regime == Regime.REFERENCE else TENSOR_CORE_TOLERANCE)[dtype]
