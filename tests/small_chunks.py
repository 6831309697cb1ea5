"""Small chunks with KV that tells them apart, and a disk tier over a folder of its own."""

from pathlib import Path

import torch

from legokv.built.folder import registry_file
from legokv.built.settings import EngineSettings
from legokv.chunks.chunk import Chunk, chunk_key
from legokv.stores.local.registry import Registry
from legokv.stores.local.tier import DiskTier
from legokv.stores.tiers import open_disk_tier

NUM_TOKENS = 16
KV_BYTES = 2 * 2 * NUM_TOKENS * 1 * 8 * 4


def small_chunk(number: int, namespace: str = "default", *, persistent: bool = True) -> Chunk:
    ids = tuple(range(number, number + NUM_TOKENS))
    key = chunk_key("f" * 64, "float32", namespace, ids)
    return Chunk(key, namespace, ids, persistent=persistent)


def small_kv(number: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(number)
    return torch.randn(2, 2, NUM_TOKENS, 1, 8, generator=generator)


def file_bytes(tmp_path: Path) -> int:
    """Bytes of one small chunk's file."""
    tier = small_disk_tier(tmp_path / "measured")
    tier.write(small_chunk(0), small_kv(0))
    return tier.stats().num_bytes


def small_disk_tier(
    root: Path,
    *,
    disk_bytes: int = 2**30,
    namespace_bytes: int = 0,
    clock=None,
    pinned=frozenset,
) -> DiskTier:
    registry = Registry.open(registry_file(root), *([] if clock is None else [clock]))
    settings = EngineSettings(
        disk_bytes=disk_bytes, namespace_bytes=namespace_bytes, low_watermark_percent=100
    )
    return open_disk_tier(root, registry, settings, pinned)
