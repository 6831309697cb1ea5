"""Memory that shows what was written past its ends, and what was not written."""

import torch

GUARD_ROWS = 4


class Guarded:
    """A tensor of NaNs inside a larger one, whose rest must stay as it is."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
        row = 1
        for size in shape[1:]:
            row *= size
        # 64 elements keep the inner tensor aligned for every dtype.
        self._edge = max(row, 64) * GUARD_ROWS
        size = shape[0] * row
        self._whole = torch.full((size + 2 * self._edge,), 7.0, dtype=dtype, device=device)
        self.inner = self._whole[self._edge : self._edge + size].view(shape)
        self.inner.fill_(torch.nan)

    def check(self, what: str) -> None:
        before, after = self._whole[: self._edge], self._whole[len(self._whole) - self._edge :]
        assert (before == 7.0).all(), f"something wrote before {what}"
        assert (after == 7.0).all(), f"something wrote past {what}"
