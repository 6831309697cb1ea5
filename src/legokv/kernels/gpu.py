"""The plugin library's plain C functions, called with tensors' addresses. No TensorRT here.

The same functions exist in the kernels' host form, where addresses are a CPU's.
"""

import ctypes
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from legokv.errors import EngineMismatch, LaunchRefused
from legokv.kernels.gpu_structs import (
    STRUCTS,
    AttentionArguments,
    KvImportArguments,
    SharingArguments,
    check_layouts,
)

DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
INDEX_TABLES = ("positions", "key_positions", "slots", "query_start", "pages")
"""The tables of a step that attention reads, all int32, by the names the op and its batch use."""


# Of a sequence's keys, that have room in the lists: of 512 keys each at 128k tokens.
_MOST_PARTS = 256


class Regime(IntEnum):
    """Which attention kernel runs; AUTO chooses by shape, MIXED for each sequence by its rows."""

    AUTO = 0
    REFERENCE = 1
    SPLIT = 2
    TILED = 3
    MIXED = 4


@dataclass(frozen=True)
class SharedTables:
    """Which pages sequences attend to together, as LegokvSharing of launchers.h lists them.

    tiles [X, 4], members [Y, 4], pages [Z, 4] and start [T + 1], all int32.
    """

    tiles: Tensor
    members: Tensor
    pages: Tensor
    start: Tensor

    def __post_init__(self) -> None:
        for name in ("tiles", "members", "pages", "start"):
            _check(f"shared {name}", getattr(self, name), torch.int32)

    def fields(self) -> dict[str, int]:
        """Addresses and sizes, by their fields in LegokvLegolinkAttention."""
        return {
            "shared_tiles": self.tiles.data_ptr(),
            "shared_members": self.members.data_ptr(),
            "shared_pages": self.pages.data_ptr(),
            "shared_start": self.start.data_ptr(),
            "num_shared_tiles": len(self.tiles),
            "num_shared_members": len(self.members),
            "num_shared_pages": len(self.pages),
        }


@dataclass(frozen=True)
class Room:
    """How many tiles, members and pages lists have room for; what finds none is not shared."""

    tiles: int
    members: int
    pages: int


@dataclass(frozen=True)
class AttentionTables:
    """The inputs of legolink_attention that all layers of a step share (shapes: see the op).

    With `shared` the `pages` are those that each sequence still reads alone.
    """

    positions: Tensor
    key_positions: Tensor
    slots: Tensor
    query_start: Tensor
    pages: Tensor
    inv_freq: Tensor
    scale: float
    shared: SharedTables | None = None

    def __post_init__(self) -> None:
        for name in INDEX_TABLES:
            _check(name, getattr(self, name), torch.int32)
        _check("inv_freq", self.inv_freq, torch.float32)

    def addresses(self) -> dict[str, int]:
        """Where each of them lies, by its field in the launchers' structures."""
        return {name: getattr(self, name).data_ptr() for name in (*INDEX_TABLES, "inv_freq")}


def check_scoring(scoring: Tensor, tables: AttentionTables) -> None:
    """LaunchRefused unless `scoring` is int32, a number for each of the tables' sequences."""
    _check("scoring", scoring, torch.int32)
    if scoring.shape != tables.pages.shape[:1]:
        raise LaunchRefused(
            f"scoring has {len(scoring)} numbers for {len(tables.pages)} sequences: one for each"
        )


def attention_arguments(
    q: Tensor, k: Tensor, v: Tensor, pool: Tensor, tables: AttentionTables
) -> AttentionArguments:
    """Addresses and sizes of one call; the tensors must stay alive until it has run.

    q, k and v may be parts of one product: only each token's heads lie one behind the other.
    LaunchRefused if they do not, the pool is not contiguous, or one is of another dtype than q's.
    """
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        _check(name, tensor[:1], q.dtype)
    _check("pool", pool, q.dtype)
    num_pages, _, page_size, num_kv_heads, head_size = pool.shape
    return AttentionArguments(
        q=q.data_ptr(),
        k=k.data_ptr(),
        v=v.data_ptr(),
        q_stride=q.stride(0),
        k_stride=k.stride(0),
        v_stride=v.stride(0),
        pool=pool.data_ptr(),
        num_pool_pages=num_pages,
        num_tokens=q.shape[0],
        num_sequences=tables.pages.shape[0],
        num_table_rows=tables.pages.shape[1],
        num_heads=q.shape[1],
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        page_size=page_size,
        dtype=DTYPES[q.dtype],
        scale=tables.scale,
        **tables.addresses(),
        **({} if tables.shared is None else tables.shared.fields()),
    )


def sharing_arguments(
    index: Mapping[str, Tensor],
    num_heads: int,
    pool: Tensor,
    room: Room,
    lists: tuple[Tensor, ...],
) -> SharingArguments:
    """Addresses and sizes for listing what a step shares. `lists`: own pages, tiles, members, pages
    and starts, all on the host as the tables of `index` are.
    """
    read = ("positions", "query_start", "pages")
    for name in read:
        _check(name, index[name], torch.int32)
    num_pages, _, page_size, num_kv_heads, head_size = pool.shape
    written = ("own_pages", "shared_tiles", "shared_members", "shared_pages", "shared_start")
    return SharingArguments(
        **{name: index[name].data_ptr() for name in read},
        **{name: each.data_ptr() for name, each in zip(written, lists, strict=True)},
        num_pool_pages=num_pages,
        num_tokens=len(index["positions"]),
        num_sequences=index["pages"].shape[0],
        num_table_rows=index["pages"].shape[1],
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        page_size=page_size,
        max_tiles=room.tiles,
        max_members=room.members,
        max_pages=room.pages,
    )


def kv_import_arguments(pool: Tensor, block: Tensor, pages: Tensor) -> KvImportArguments:
    """Addresses and sizes of one import; the tensors must stay alive until it has run.

    LaunchRefused if one is not contiguous, `pages` are not int32, or the shapes do not fit.
    """
    half = pool.shape[2:].numel()
    if block.shape[1:] != pool.shape[1:] or pages.shape != block.shape[:1]:
        raise LaunchRefused(
            f"a block of {tuple(block.shape)} for {tuple(pages.shape)} pages does not fit "
            f"a pool of {tuple(pool.shape)}"
        )
    return _import_arguments(pool[None], block, pages, (0, half, 2 * half, half))


def stored_import_arguments(pools: Tensor, kv: Tensor, pages: Tensor) -> KvImportArguments:
    """The same of stored kv [L, 2, n, G, D] into pools [L, N, 2, S, G, D]."""
    num_layers, _, size, *heads = pools[:, 0].shape
    num_tokens, row = kv.shape[2], pools.shape[4:].numel()
    num_pages = -(-num_tokens // size)
    if kv.shape != (num_layers, 2, num_tokens, *heads) or pages.shape != (num_pages,):
        raise LaunchRefused(
            f"kv of {tuple(kv.shape)} for {tuple(pages.shape)} pages does not fit pools of "
            f"{tuple(pools.shape)}"
        )
    stored, last = num_tokens * row, (num_tokens - (num_pages - 1) * size) * row
    return _import_arguments(pools, kv, pages, (2 * stored, stored, size * row, last))


def _import_arguments(
    pools: Tensor, block: Tensor, pages: Tensor, elements: tuple[int, int, int, int]
) -> KvImportArguments:
    """`elements`: the strides of layers, values and pages, and what the last page's half has."""
    _check("pool", pools, pools.dtype)
    _check("block", block, block.dtype)
    _check("pages", pages, torch.int32)
    layer_stride, value_stride, page_stride, last_elements = elements
    return KvImportArguments(
        pool=pools.data_ptr(),
        block=block.data_ptr(),
        pages=pages.data_ptr(),
        num_layers=pools.shape[0],
        num_pool_pages=pools.shape[1],
        num_import_pages=len(pages),
        half_elements=pools.shape[3:].numel(),
        layer_stride=layer_stride,
        value_stride=value_stride,
        page_stride=page_stride,
        last_elements=last_elements,
        pool_dtype=DTYPES[pools.dtype],
        block_dtype=DTYPES[block.dtype],
    )


class Launchers:
    """The functions of one loaded library. Everything is enqueued on `stream`, a CUDA stream's
    handle, and happens in place; the host form has happened when the call returns.

    structs: whose arguments are given to it; others it may take as it likes, as one of an older
    engine does whose imports alone are launched.

    EngineMismatch for a library that can't be loaded, or that lays its arguments out otherwise,
    with both sizes.
    """

    def __init__(self, library: Path, structs: Collection[str] = tuple(STRUCTS)) -> None:
        try:
            self.library = ctypes.CDLL(str(library))
        except OSError as error:
            raise EngineMismatch(
                f"{library} can't be loaded ({error}): build the engine again, or the plugins with "
                "build/build_plugins.py if they are not an engine's"
            ) from None
        self.library.legokv_last_error.restype = ctypes.c_char_p
        self.library.legokv_library_info.restype = ctypes.c_char_p
        # Before any other function is named: an older library has fewer of them.
        check_layouts(library, self.info()["structs"], structs)
        if "LegokvLegolinkAttention" in structs:
            self.library.legokv_legolink_attention_workspace.restype = ctypes.c_int64
            self.library.legokv_scored_attention_workspace.restype = ctypes.c_int64

    def info(self) -> dict[str, Any]:
        """What the library says of itself: version, form, sizes, dtypes, layouts."""
        info: dict[str, Any] = json.loads(self.library.legokv_library_info())
        return info

    def kv_import(self, pool: Tensor, block: Tensor, pages: Tensor, stream: int = 0) -> None:
        """Write `block` [M, 2, S, G, D] over `pages` int32 [M] of `pool` [N, 2, S, G, D]."""
        arguments = kv_import_arguments(pool, block, pages)
        self._call(self.library.legokv_kv_import(ctypes.byref(arguments), ctypes.c_void_p(stream)))

    def import_kv(self, pools: Tensor, kv: Tensor, pages: Tensor, stream: int = 0) -> None:
        """Put stored kv [L, 2, n, G, D] over `pages` int32 [M] of `pools` [L, N, 2, S, G, D]."""
        arguments = stored_import_arguments(pools, kv, pages)
        self._call(self.library.legokv_kv_import(ctypes.byref(arguments), ctypes.c_void_p(stream)))

    def workspace_bytes(self, arguments: AttentionArguments) -> int:
        """Bytes of workspace the attention needs for these sizes; LaunchRefused if it can't run."""
        return self._need(self.library.legokv_legolink_attention_workspace, arguments)

    def scored_workspace_bytes(self, arguments: AttentionArguments) -> int:
        """The same for `scored_attention`."""
        return self._need(self.library.legokv_scored_attention_workspace, arguments)

    def _need(self, ask: Callable[..., int], arguments: AttentionArguments) -> int:
        need = int(ask(ctypes.byref(arguments)))
        if need < 0:
            raise LaunchRefused(self._last_error())
        return need

    def list_shared(
        self, index: Mapping[str, Tensor], num_heads: int, pool: Tensor, room: Room | None = None
    ) -> tuple[Tensor, SharedTables] | None:
        """What each sequence still reads alone, as `pages`, and what is attended to together, from
        a step's INDEX_TABLES on the host; None where nothing is worth it.

        With `room` there are lists of its sizes all the same, of nothing: where a captured graph
        reads them, those of the step before must not stay. Else they are as long as what was found.
        All are parts of one tensor.
        """
        pages = index["pages"]
        num_sequences, num_rows, _ = pages.shape
        parts = num_sequences * _MOST_PARTS
        most = room or Room(parts, parts, num_sequences * num_rows)
        if room is not None and room.tiles > 0 and 0 in (room.members, room.pages):
            raise LaunchRefused(
                f"room for {room.tiles} tiles needs some for members and pages, not for "
                f"{room.members} and {room.pages}"
            )
        sizes = (num_sequences * num_rows, most.tiles, most.members, most.pages)
        lists = [torch.empty((max(0, size), 4), dtype=torch.int32) for size in sizes]
        start = torch.empty(len(index["positions"]) + 1, dtype=torch.int32)
        sharing = sharing_arguments(index, num_heads, pool, most, (*lists, start))
        self._call(self.library.legokv_list_shared(ctypes.byref(sharing)))
        if sharing.num_tiles == 0 and room is None:
            return None
        own, *used = lists
        own = own.view(pages.shape)
        if room is None:
            own = own[:, : max(1, sharing.num_own_rows)]
            counts = (sharing.num_tiles, sharing.num_members, sharing.num_pages)
            used = [each[:count] for each, count in zip(used, counts, strict=True)]
        own, tiles, members, listed, start = _together([own, *used, start], pool.device)
        return own, SharedTables(tiles, members, listed, start)

    def legolink_attention(
        self,
        arguments: AttentionArguments,
        out: Tensor,
        workspace: Tensor | None = None,
        stream: int = 0,
    ) -> None:
        """Write K and V into the pool and the attention's output [T, H, D] into `out`."""
        _give(arguments, out, workspace)
        status = self.library.legokv_legolink_attention(
            ctypes.byref(arguments), ctypes.c_void_p(stream)
        )
        self._call(status)

    def scored_attention(
        self,
        arguments: AttentionArguments,
        out: Tensor,
        scores: tuple[Tensor, Tensor],
        workspace: Tensor,
        stream: int = 0,
    ) -> None:
        """The same, and into the second of `scores` the mass float32 [B, P, S] of its first, the
        numbers of scoring tokens int32 [B].
        """
        scoring, mass = scores
        _check("scoring", scoring, torch.int32)
        _check("mass", mass, torch.float32)
        shape = (arguments.num_sequences, arguments.num_table_rows, arguments.page_size)
        if mass.shape != shape or scoring.shape != shape[:1]:
            raise LaunchRefused(
                f"scoring {tuple(scoring.shape)} and mass {tuple(mass.shape)} do not fit a step of "
                f"{shape}"
            )
        _give(arguments, out, workspace)
        status = self.library.legokv_scored_attention(
            ctypes.byref(arguments),
            ctypes.c_void_p(scoring.data_ptr()),
            ctypes.c_void_p(mass.data_ptr()),
            ctypes.c_void_p(stream),
        )
        self._call(status)

    def _call(self, status: int) -> None:
        if status != 0:
            raise LaunchRefused(self._last_error())

    def _last_error(self) -> str:
        message: bytes = self.library.legokv_last_error()
        return message.decode()


def _together(tables: list[Tensor], device: torch.device) -> list[Tensor]:
    """The same on `device`, by one copy."""
    flat = torch.cat([table.reshape(-1) for table in tables]).to(device)
    placed, first = [], 0
    for table in tables:
        placed.append(flat[first : first + table.numel()].view(table.shape))
        first += table.numel()
    return placed


def _give(arguments: AttentionArguments, out: Tensor, workspace: Tensor | None) -> None:
    arguments.out = out.data_ptr()
    if workspace is not None:
        arguments.workspace = workspace.data_ptr()
        arguments.workspace_bytes = workspace.numel() * workspace.element_size()


def _check(name: str, tensor: Tensor, dtype: torch.dtype) -> None:
    if tensor.dtype != dtype or not tensor.is_contiguous():
        contiguous = "contiguous" if tensor.is_contiguous() else "not contiguous"
        raise LaunchRefused(f"{name} must be contiguous {dtype}; it is {contiguous} {tensor.dtype}")
