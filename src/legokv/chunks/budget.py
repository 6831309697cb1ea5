"""How much a tier keeps, and which chunks leave for others. Arithmetic alone, no I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

from legokv.errors import InvalidRequest, exact


@dataclass(frozen=True)
class Budget:
    """At most `limit` bytes, or pages. Past its `high` share, chunks leave down to the `low` one.

    The gap is what makes evictions few and large rather than one with every new chunk.
    """

    limit: int
    high: float = 1.0
    low: float = 0.9

    def __post_init__(self) -> None:
        if self.limit < 0 or not 0 < self.low <= self.high <= 1:
            raise InvalidRequest(
                f"a budget is 0 or more with watermarks 0 < low <= high <= 1, not {self.limit} "
                f"with {exact(self.low)} and {exact(self.high)}"
            )

    def to_free(self, used: int, incoming: int) -> tuple[int, int]:
        """What must leave before `incoming` more is kept: so much if possible, so much at least."""
        total = used + incoming
        if total <= self.high * self.limit:
            return 0, 0
        return total - int(self.low * self.limit), max(0, total - self.limit)


@dataclass(frozen=True)
class Candidate:
    """A chunk that may leave a tier, and the bytes or pages that would free."""

    key: str
    size: int


def victims(
    candidates: Iterable[Candidate], target: int, needed: int
) -> tuple[Candidate, ...] | None:
    """The first candidates that together free the target, or all if they free what is needed.

    None, and nobody has to go, if even all of them free too little.
    """
    chosen: list[Candidate] = []
    freed = 0
    for candidate in candidates:
        if freed >= target:
            break
        chosen.append(candidate)
        freed += candidate.size
    return tuple(chosen) if freed >= needed else None
