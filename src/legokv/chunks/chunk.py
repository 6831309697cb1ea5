"""A chunk as the rest of the system names it: whose it is, its tokens, its key. No KV here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Chunk:
    """A span of tokens compiled alone from position 0, and reused by `key` at any position.

    `dummy_tokens` dummies stood before it when it was compiled (LegoLink-0; their KV is dropped,
    so token i was at position dummy_tokens + i). A `persistent` chunk is also kept on disk.
    """

    key: str
    namespace: str
    token_ids: tuple[int, ...]
    dummy_tokens: int = 0
    persistent: bool = True

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)
