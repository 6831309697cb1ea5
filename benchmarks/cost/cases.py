"""Prompts of the cost measurements: seeded random tokens as chunks and a question, and methods."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.record.names import UnknownName, legolink_tokens
from legokv import Chunk, Engine
from legokv.engine.jobs import Prefill

QUESTION_TOKENS = 32


@dataclass(frozen=True)
class Case:
    """One prompt: chunks that may be reused, and a question that never is."""

    chunks: tuple[Chunk, ...]
    question: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return sum(chunk.num_tokens for chunk in self.chunks) + len(self.question)


Method = Callable[[Engine, Case], Prefill]


def random_ids(engine: Engine, length: int, seed: int) -> list[int]:
    """`length` token ids, the same for the same seed; none of the first, special, ones."""
    dice = np.random.Generator(np.random.PCG64(seed))
    return [int(token) for token in dice.integers(17, engine.facts.model.vocab_size, length)]


def case(engine: Engine, num_chunks: int, chunk_tokens: int) -> Case:
    """A prompt of equal chunks; the same numbers give the same prompt. Nothing is compiled."""
    ids = [random_ids(engine, chunk_tokens, 1000 + number) for number in range(num_chunks)]
    chunks = tuple(engine.chunk(each, persistent=False) for each in ids)
    return Case(chunks, tuple(random_ids(engine, QUESTION_TOKENS, 1)))


def method(name: str) -> Method:
    """The method of that name, as the reuse benchmarks name them: `naive` is k = 0."""
    if name in _NAMED:
        return _NAMED[name]
    link_tokens = legolink_tokens(name)
    if link_tokens is not None:
        return _legolink(link_tokens)
    raise UnknownName(
        f"unknown method '{name}'; known are {', '.join(_NAMED)} and legolink-K for a number K"
    )


def plain_prefill(engine: Engine, num_tokens: int) -> Callable[[], Prefill]:
    """The limit of every method: as many tokens as it computes, with nothing cached before them."""
    ids = random_ids(engine, num_tokens, 2)
    return lambda: engine.prefill([ids])


def _legolink(link_tokens: int) -> Method:
    return lambda engine, case: engine.prefill(
        [*case.chunks, case.question], link_tokens=link_tokens
    )


def _full(engine: Engine, case: Case) -> Prefill:
    return engine.prefill([*case.chunks, case.question], mode="full")


def _prefix(engine: Engine, case: Case) -> Prefill:
    """Prefix caching where only the first chunk stands where it stood before."""
    fresh = [token for chunk in case.chunks[1:] for token in chunk.token_ids]
    return engine.prefill([case.chunks[0], [*fresh, *case.question]], link_tokens=0)


def _whole_prefix(engine: Engine, case: Case) -> Prefill:
    """Prefix caching at its best: all chunks in the same order as before, joined."""
    joined = engine.chunk(_joined(case.chunks), persistent=False)
    return engine.prefill([joined, case.question], link_tokens=0)


def _behind_dummies(engine: Engine, case: Case) -> Prefill:
    return engine.prefill([*case.chunks, case.question], mode="legolink-0")


def _joined(chunks: Sequence[Chunk]) -> list[int]:
    return [token for chunk in chunks for token in chunk.token_ids]


_NAMED: dict[str, Method] = {
    "full": _full,
    "prefix": _prefix,
    "whole-prefix": _whole_prefix,
    "naive": _legolink(0),
    "legolink-0": _behind_dummies,
}
