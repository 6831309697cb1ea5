"""How much each tier below the pool may keep. No tensors, no files."""

from dataclasses import dataclass

from legokv.chunks.budget import Budget

HOST_BYTES = 2**30
DISK_BYTES = 32 * 2**30
REMOTE_BYTES = 8 * 2**30


@dataclass(frozen=True)
class TierLimits:
    """Byte budgets of the tiers, 0 for no such tier; `namespace_bytes` in each durable one, 0: any.

    A tier filled past its high watermark evicts down to its low one; both are shares of it.
    """

    host_bytes: int = HOST_BYTES
    disk_bytes: int = DISK_BYTES
    namespace_bytes: int = 0
    high_watermark: float = 1.0
    low_watermark: float = 0.9
    remote_bytes: int = REMOTE_BYTES

    def budget(self, num_bytes: int) -> Budget:
        return Budget(num_bytes, self.high_watermark, self.low_watermark)
