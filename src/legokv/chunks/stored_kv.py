"""A chunk's KV as tiers keep it: in the model's type, or int8 with scales. No bytes, no files."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from legokv.chunks.header import StoredDtype
from legokv.errors import ChunkUnreadable

_LARGEST = 127


@dataclass(frozen=True)
class Int8Kv:
    """`values` int8 [L, 2, n, G, D]; `scales` [L, 2, n, G] of the model's type: what 127 is."""

    values: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def pin_memory(self) -> "Int8Kv":
        return Int8Kv(self.values.pin_memory(), self.scales.pin_memory())


@dataclass(frozen=True)
class RankedKv:
    """KV as it is kept, with its chunk's ranking: `scores` float32 [n], the highest first."""

    kv: Tensor | Int8Kv
    scores: Tensor

    @property
    def nbytes(self) -> int:
        return self.kv.nbytes + self.scores.nbytes

    def pin_memory(self) -> "RankedKv":
        return RankedKv(self.kv.pin_memory(), self.scores)


StoredKv = Tensor | Int8Kv | RankedKv


@dataclass(frozen=True)
class KvForm:
    """What one model's stored KV looks like: [L, 2, n, G, D] of `dtype`, or int8 scaled by it."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype

    def check(self, kv: StoredKv, num_tokens: int) -> None:
        """ChunkUnreadable unless `kv` is of `num_tokens` tokens of this model, and all finite."""
        kv, scores = split_ranking(kv)
        values, scales = (kv.values, kv.scales) if isinstance(kv, Int8Kv) else (kv, kv)
        shape = (self.num_layers, 2, num_tokens, self.num_kv_heads, self.head_size)
        if tuple(values.shape) != shape or scales.dtype != self.dtype:
            raise ChunkUnreadable(
                f"it holds KV {list(values.shape)} of {scales.dtype}, this model's is "
                f"{list(shape)} of {self.dtype}",
                "layout",
            )
        if not is_finite(scales) or not (scores is None or is_finite(scores)):
            raise ChunkUnreadable("its KV has NaN or infinity", "not_finite")


def is_finite(values: Tensor) -> bool:
    """Whether no number is NaN or infinite; a fifth of what `torch.isfinite` takes, or less."""
    # NaN is both the least and the greatest where there is one.
    return bool(torch.stack(torch.aminmax(values)).isfinite().all())


def split_ranking(stored: StoredKv) -> tuple[Tensor | Int8Kv, Tensor | None]:
    """The KV alone, and its ranking, float32 [n], if it has one."""
    return (stored.kv, stored.scores) if isinstance(stored, RankedKv) else (stored, None)


def to_stored(
    kv: Tensor, stored_dtype: StoredDtype, ranking: NDArray[np.float32] | None = None
) -> StoredKv:
    """KV [L, 2, n, G, D] of the model's type as it is kept, with its ranking [n] if it has one."""
    stored = _to_int8(kv) if stored_dtype == "int8" else kv
    return stored if ranking is None else RankedKv(stored, torch.from_numpy(ranking))


def from_stored(stored: StoredKv) -> Tensor:
    """KV of the model's type, for the pool. Stored once more, and given again, it is the same."""
    kv, _ = split_ranking(stored)
    return _from_int8(kv) if isinstance(kv, Int8Kv) else kv


def _to_int8(kv: Tensor) -> Int8Kv:
    # The scale is one of the values, so the model's type has it exactly, and rounding KV that was
    # rounded before changes nothing.
    scales = kv.abs().amax(-1)
    steps = kv.to(_wide(kv.dtype)).mul_(_LARGEST)
    steps /= torch.where(scales == 0, 1, scales).to(steps.dtype)[..., None]
    return Int8Kv(steps.round_().to(torch.int8), scales)


def _from_int8(stored: Int8Kv) -> Tensor:
    wide = stored.values.to(_wide(stored.scales.dtype))
    return wide.mul_(stored.scales[..., None]).div_(_LARGEST).to(stored.scales.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """A type in which 127 times a value of `dtype` is exact."""
    return torch.float64 if dtype == torch.float32 else torch.float32
