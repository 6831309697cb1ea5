"""A seeded stream of requests: which documents in which order, and when each arrives. No I/O."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Workload:
    """What the requests of one run are drawn from.

    Documents are numbered by popularity: number r is drawn with weight 1 / (r + 1) ** exponent.
    A request holds `documents_per_request` different ones in the order they were drawn.
    """

    seed: int
    num_documents: int
    documents_per_request: int
    zipf_exponent: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.documents_per_request <= self.num_documents:
            raise ValueError(
                f"{self.documents_per_request} different documents a request need as many in all, "
                f"there are {self.num_documents}"
            )


@dataclass(frozen=True)
class Arrival:
    """One request: seconds after the start, its documents by number, and its question's number."""

    at_seconds: float
    documents: tuple[int, ...]
    question: int


def arrivals(workload: Workload, requests_per_second: float, num_requests: int) -> list[Arrival]:
    """Poisson arrivals at a rate; the documents of request n are the same at every rate."""
    if requests_per_second <= 0:
        raise ValueError(f"requests_per_second is above 0, not {requests_per_second}")
    gaps = random.Random(f"{workload.seed} arrivals")
    at = itertools.accumulate(gaps.expovariate(requests_per_second) for _ in range(num_requests))
    chosen = selections(workload, num_requests)
    pairs = zip(at, chosen, strict=True)
    return [Arrival(seconds, documents, n) for n, (seconds, documents) in enumerate(pairs)]


def selections(workload: Workload, num_requests: int) -> list[tuple[int, ...]]:
    """The documents of each request, without a time."""
    dice = random.Random(f"{workload.seed} documents")
    return [_selection(workload, dice) for _ in range(num_requests)]


def _selection(workload: Workload, dice: random.Random) -> tuple[int, ...]:
    left = list(range(workload.num_documents))
    chosen = []
    for _ in range(workload.documents_per_request):
        weights = [1 / (number + 1) ** workload.zipf_exponent for number in left]
        (number,) = dice.choices(left, weights)
        left.remove(number)
        chosen.append(number)
    # Drawn one after another the popular stand first, which would favour prefix caching.
    dice.shuffle(chosen)
    return tuple(chosen)


@dataclass(frozen=True)
class ReusableShare:
    """Share of all document tokens that a cache without any limit could have reused."""

    first_document: float
    longest_prefix: float
    any_place: float


def reusable(requests: Sequence[tuple[int, ...]]) -> ReusableShare:
    """What the requests themselves allow, documents counted as equally long.

    longest_prefix: the most documents from the start that an earlier request had in this order.
    """
    total = sum(map(len, requests))
    first = prefix = anywhere = 0
    seen: set[int] = set()
    prefixes: set[tuple[int, ...]] = set()
    for documents in requests:
        starts = [documents[:length] for length in range(1, len(documents) + 1)]
        first += documents[:1] in prefixes
        prefix += _leading(start in prefixes for start in starts)
        anywhere += sum(number in seen for number in documents)
        prefixes.update(starts)
        seen.update(documents)
    return ReusableShare(first / total, prefix / total, anywhere / total)


def _leading(flags: Iterable[bool]) -> int:
    return sum(1 for _ in itertools.takewhile(bool, flags))
