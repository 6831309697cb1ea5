"""Rows of logits handed to the CPU library, which draws their tokens where they lie."""

import ctypes
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legokv.engine.sampling import Draw
from legokv.errors import LaunchRefused
from legokv.kernels.gpu import DTYPES
from legokv.kernels.native_library import InstructionSet, NativeLibrary


class DrawRowArguments(ctypes.Structure):
    """LegokvCpuDrawRow of cpu_launchers.h."""

    _fields_ = (
        ("values", ctypes.c_void_p),
        ("allowed", ctypes.c_void_p),
        ("change_ids", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("divisor", ctypes.c_void_p),
        ("taken", ctypes.c_void_p),
        ("banned_ids", ctypes.c_void_p),
        ("num_changes", ctypes.c_int64),
        ("num_banned", ctypes.c_int64),
        ("top_k", ctypes.c_int64),
        ("temperature", ctypes.c_double),
        ("top_p", ctypes.c_double),
        ("min_p", ctypes.c_double),
        ("place", ctypes.c_double),
    )


class DrawArguments(ctypes.Structure):
    """LegokvCpuDraw of cpu_launchers.h."""

    _fields_ = (
        ("rows", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("num_rows", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("is_exact", ctypes.c_int32),
        ("instruction_set", ctypes.c_int32),
        ("num_threads", ctypes.c_int32),
    )


def drawn_rows(
    library: NativeLibrary,
    logits: Tensor,
    draws: Sequence[Draw],
    instruction_set: InstructionSet = InstructionSet.BEST,
    *,
    is_exact: bool = False,
) -> list[int]:
    """Ids drawn by the library from `logits` [R, V], float32 or bfloat16; -1 where not finite.

    is_exact: each row by the exact weights, which else only close draws are decided by. The ids
    are the same. LaunchRefused for logits of other types, or a draw of a row or token not there.
    """
    if logits.dim() != 2 or logits.dtype not in (torch.float32, torch.bfloat16):
        raise LaunchRefused(
            "logits to draw from are [rows, tokens] of float32 or bfloat16, these are "
            f"{list(logits.shape)} of {logits.dtype}"
        )
    absent = [draw.row for draw in draws if not 0 <= draw.row < len(logits)]
    if absent:
        raise LaunchRefused(f"rows 0 to {len(logits) - 1} can be drawn from, not {absent[0]}")
    logits = logits.contiguous()
    first, row_bytes = logits.data_ptr(), logits.shape[1] * logits.element_size()
    held: list[NDArray[np.generic]] = []
    each = (DrawRowArguments * len(draws))()
    for row, draw in zip(each, draws, strict=True):
        row.values = first + draw.row * row_bytes
        held += _ask_for(row, draw, logits.shape[1])
    out = (ctypes.c_int64 * len(draws))()
    arguments = DrawArguments(
        ctypes.addressof(each),
        ctypes.addressof(out),
        len(draws),
        logits.shape[1],
        DTYPES[logits.dtype],
        is_exact,
        instruction_set,
        torch.get_num_threads(),
    )
    library.check(library.functions.legokv_cpu_draw(ctypes.byref(arguments)))
    return list(out)


def _ask_for(row: DrawRowArguments, draw: Draw, num_tokens: int) -> list[NDArray[np.generic]]:
    """Fill all but the row's values; the arrays that it then points to."""
    held: list[NDArray[np.generic]] = []

    def address(array: NDArray[np.generic]) -> int:
        held.append(array)
        return array.ctypes.data

    changes, options = draw.changes, draw.options
    row.temperature, row.place = options.temperature, draw.place
    row.top_k, row.top_p, row.min_p = min(options.top_k, num_tokens), options.top_p, options.min_p
    if draw.allowed is not None:
        if len(draw.allowed) != num_tokens:
            raise LaunchRefused(f"a mask has {len(draw.allowed)} tokens, a row {num_tokens}")
        row.allowed = address(np.ascontiguousarray(draw.allowed, np.bool_))
    if changes:
        row.num_changes = len(changes.ids)
        row.change_ids, row.bias = address(changes.ids), address(changes.bias)
        row.divisor, row.taken = address(changes.divisor), address(changes.taken)
    if draw.banned:
        row.num_banned = len(draw.banned)
        row.banned_ids = address(np.array(draw.banned, np.int64))
    return held
