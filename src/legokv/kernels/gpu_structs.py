"""The structures that cross to the plugin library, as in launchers.h, and whether a library lays
them out the same. No tensors here.
"""

import ctypes
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from legokv.errors import EngineMismatch


class KvImportArguments(ctypes.Structure):
    """LegokvKvImport of launchers.h."""

    _fields_ = (
        ("pool", ctypes.c_void_p),
        ("block", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("num_layers", ctypes.c_int64),
        ("num_pool_pages", ctypes.c_int64),
        ("num_import_pages", ctypes.c_int64),
        ("half_elements", ctypes.c_int64),
        ("layer_stride", ctypes.c_int64),
        ("value_stride", ctypes.c_int64),
        ("page_stride", ctypes.c_int64),
        ("last_elements", ctypes.c_int64),
        ("pool_dtype", ctypes.c_int32),
        ("block_dtype", ctypes.c_int32),
    )


class AttentionArguments(ctypes.Structure):
    """LegokvLegolinkAttention of launchers.h."""

    _fields_ = (
        ("q", ctypes.c_void_p),
        ("k", ctypes.c_void_p),
        ("v", ctypes.c_void_p),
        ("q_stride", ctypes.c_int64),
        ("k_stride", ctypes.c_int64),
        ("v_stride", ctypes.c_int64),
        ("pool", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("key_positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("inv_freq", ctypes.c_void_p),
        ("shared_tiles", ctypes.c_void_p),
        ("shared_members", ctypes.c_void_p),
        ("shared_pages", ctypes.c_void_p),
        ("shared_start", ctypes.c_void_p),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
        ("num_pool_pages", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("num_table_rows", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("regime", ctypes.c_int32),
        ("num_splits", ctypes.c_int32),
        ("num_shared_tiles", ctypes.c_int32),
        ("num_shared_members", ctypes.c_int32),
        ("num_shared_pages", ctypes.c_int32),
        ("scale", ctypes.c_float),
    )


class SharingArguments(ctypes.Structure):
    """LegokvSharing of launchers.h."""

    _fields_ = (
        ("positions", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("pages", ctypes.c_void_p),
        ("own_pages", ctypes.c_void_p),
        ("shared_tiles", ctypes.c_void_p),
        ("shared_members", ctypes.c_void_p),
        ("shared_pages", ctypes.c_void_p),
        ("shared_start", ctypes.c_void_p),
        ("num_pool_pages", ctypes.c_int64),
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("num_table_rows", ctypes.c_int32),
        ("num_heads", ctypes.c_int32),
        ("num_kv_heads", ctypes.c_int32),
        ("head_size", ctypes.c_int32),
        ("page_size", ctypes.c_int32),
        ("max_tiles", ctypes.c_int32),
        ("max_members", ctypes.c_int32),
        ("max_pages", ctypes.c_int32),
        ("num_tiles", ctypes.c_int32),
        ("num_members", ctypes.c_int32),
        ("num_pages", ctypes.c_int32),
        ("num_own_rows", ctypes.c_int32),
    )


STRUCTS: dict[str, type[ctypes.Structure]] = {
    "LegokvKvImport": KvImportArguments,
    "LegokvLegolinkAttention": AttentionArguments,
    "LegokvSharing": SharingArguments,
}
"""The structures that cross to the library, by their names in launchers.h."""

Layout = Mapping[str, Sequence[int]]
"""Where a structure's fields lie: by name, the first byte and how many."""


def layout_of(structure: type[ctypes.Structure]) -> Layout:
    """As `Launchers.info` has a library's."""
    places = {name: getattr(structure, name) for name, *_ in structure._fields_}
    return {name: [place.offset, place.size] for name, place in places.items()}


def check_layouts(library: Path, theirs_of: Mapping[str, Layout], structs: Collection[str]) -> None:
    """EngineMismatch, with both sizes, unless `library` takes `structs` as this code gives them."""
    for name in structs:
        ours, theirs = layout_of(STRUCTS[name]), theirs_of.get(name, {})
        if theirs == ours:
            continue
        fields = sorted(field for field in {*ours, *theirs} if ours.get(field) != theirs.get(field))
        raise EngineMismatch(
            f"{library} is of other code: it takes {name} of {_num_bytes(theirs)} bytes, this "
            f"legokv gives {_num_bytes(ours)}, and {', '.join(fields)} lie elsewhere: build the "
            "engine again, or the plugins with build/build_plugins.py if they are not an engine's"
        )


def _num_bytes(layout: Layout) -> int:
    return max((offset + size for offset, size in layout.values()), default=0)
