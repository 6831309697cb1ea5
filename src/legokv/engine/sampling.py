"""How the tokens of an answer are chosen: options, and what one answer keeps between two draws.

The arithmetic is in `draw`, which batches it. No tensors here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from legokv.engine.option_checks import check_number, check_token_bias, check_whole
from legokv.errors import FormatFailed, InvalidRequest

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
"""Wider than anybody uses; far outside them a logit leaves what floating point can tell apart."""
NUMBER_BOUNDS = {
    "temperature": (0.0, MAX_TEMPERATURE),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY),
    "presence_penalty": (-2.0, 2.0),
    "frequency_penalty": (-2.0, 2.0),
}
"""From and to what numbers are taken; a temperature above 0 is not below its least, and top_p is
not 0."""
MAX_LOGIT_BIAS = 100.0
MAX_BIASED_TOKENS = 1024

Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; InvalidRequest for a value out of range.

    logit_bias, then the penalties change the logits (see `LogitChanges`), then temperature, top_k,
    top_p and min_p choose in this order.

    temperature: logits are divided by it, 0.01 to 100; 0 is greedy.
    top_k: so many likeliest tokens are kept; 0 keeps all.
    top_p: the likeliest that together have this share are kept, above 0 to 1; 1 keeps all.
    seed: of the random numbers, 0 or more; None draws one.
    min_p: tokens at least this share as likely as the likeliest are kept, 0 to 1; 0 keeps all
        (arXiv 2407.01082).
    repetition_penalty: 0.01 to 100; 1 changes nothing.
    presence_penalty, frequency_penalty: -2 to 2; 0 changes nothing.
    logit_bias: by token id, -100 to 100, added to the token's logit; at most 1,024 tokens.

    >>> import legokv
    >>> engine = legokv.Engine.open("out/engines/llama")
    >>> options = legokv.SamplingOptions(temperature=0.7, top_p=0.9, seed=1)
    >>> prompt = [engine.tokenizer.encode("The ferry leaves at")]
    >>> once, again = (
    ...     [token.id for token in engine.generate(prompt, max_tokens=8, sampling=options)]
    ...     for _ in range(2)
    ... )
    >>> once == again
    True
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name, (low, high) in NUMBER_BOUNDS.items():
            check_number(name, getattr(self, name), low, high)
        if self.temperature:
            check_number("temperature above 0", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        check_whole("top_k", self.top_k, 0)
        if not self.top_p:
            raise InvalidRequest(f"top_p is above 0 and at most 1, not {self.top_p}")
        if self.seed is not None:
            check_whole("seed", self.seed, 0)
        bias = check_token_bias("logit_bias", self.logit_bias, MAX_LOGIT_BIAS, MAX_BIASED_TOKENS)
        object.__setattr__(self, "logit_bias", bias)


class LogitChanges:
    """What one answer's bias, its prompt and its tokens so far change of the next logits.

    bias is added first. repetition, for a token of the prompt or the answer (CTRL, arXiv
    1909.05858, as Hugging Face transformers applies it to either sign): a logit above 0 is divided
    by it, another multiplied. frequency and presence, for a token of the answer (the OpenAI API's
    definition): frequency times how often it came, and presence once, are subtracted.

    Token n of those it changes is `ids[n]`, with its `bias`, the `divisor` that repetition is and
    what is `taken` in the end.
    """

    def __init__(self, options: SamplingOptions, prompt_ids: Sequence[int] = ()) -> None:
        self._repetition = options.repetition_penalty
        self._frequency, self._presence = options.frequency_penalty, options.presence_penalty
        seen = np.unique(np.asarray(prompt_ids if self._repetition != 1 else (), np.int64))
        biased = np.fromiter(options.logit_bias, np.int64, len(options.logit_bias))
        self.ids = np.union1d(seen, biased)
        self.bias = np.zeros(len(self.ids))
        self.bias[np.searchsorted(self.ids, biased)] = list(options.logit_bias.values())
        self.divisor = np.ones(len(self.ids))
        self.divisor[np.searchsorted(self.ids, seen)] = self._repetition
        self.taken = np.zeros(len(self.ids))
        self._places = {token_id: place for place, token_id in enumerate(self.ids.tolist())}
        self._counts: dict[int, int] = {}

    def __bool__(self) -> bool:
        """Whether a logit is changed."""
        return len(self.ids) > 0

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`."""
        if (self._repetition, self._frequency, self._presence) == (1, 0, 0):
            return
        times = self._counts[token_id] = self._counts.get(token_id, 0) + 1
        place = self._places.setdefault(token_id, len(self.ids))
        if place == len(self.ids):
            self.ids = np.append(self.ids, token_id)
            self.bias, self.taken = np.append(self.bias, 0.0), np.append(self.taken, 0.0)
            self.divisor = np.append(self.divisor, 1.0)
        self.divisor[place] = self._repetition
        self.taken[place] = self._frequency * times + self._presence


class Allowed(Protocol):
    """Which tokens an answer may go on with: a grammar's state."""

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token [V] may come next; FormatFailed if that cannot be said."""

    def accept(self, token_id: int) -> None:
        """The answer goes on with `token_id`; FormatFailed if it may not."""


@dataclass(frozen=True)
class Draw:
    """One token to be drawn, of row `row` of a step's logits.

    place: the random number from 0 to 1 that chooses among the candidates.
    banned: ids that must not come. allowed: the tokens [V] that may; None allows all.
    """

    row: int
    options: SamplingOptions
    changes: LogitChanges
    place: float = 0.0
    banned: Sequence[int] = ()
    allowed: NDArray[np.bool_] | None = None


class Sampler:
    """Asks for the tokens of one answer; the same seed, index and logits give the same tokens.

    `index` is the answer's number among those of its request: each has its own stream of random
    numbers from the one seed, and the first has the one that a single answer has.
    """

    def __init__(
        self,
        options: SamplingOptions,
        prompt_ids: Sequence[int] = (),
        index: int = 0,
        grammar: Allowed | None = None,
    ) -> None:
        self._options = options
        self._changes = LogitChanges(options, prompt_ids)
        self._grammar = grammar
        seeds = np.random.SeedSequence(options.seed, spawn_key=(index,) if index else ())
        self._random = np.random.Generator(np.random.PCG64(seeds))

    def draw(self, row: int = 0, banned: Sequence[int] = ()) -> Draw:
        """What to draw next, of row `row`: none that is `banned`, unless a grammar has no other.

        One random number is used for each token, whatever is kept.
        """
        allowed = None if self._grammar is None else _without(self._grammar.allowed(), banned)
        place = self._random.random() if self._options.temperature else 0.0
        no_ids = () if allowed is not None else banned
        return Draw(row, self._options, self._changes, place, no_ids, allowed)

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`."""
        self._changes.count(token_id)
        if self._grammar is not None:
            self._grammar.accept(token_id)


def _without(allowed: NDArray[np.bool_], banned: Sequence[int]) -> NDArray[np.bool_]:
    if not allowed.any():
        raise FormatFailed("the answer's format allows no token here")
    if not banned:
        return allowed
    others = allowed.copy()
    others[list(banned)] = False
    return others if others.any() else allowed


def largest(values: Logits, count: int) -> NDArray[np.int64]:
    """Places of the `count` largest values, ascending; of equal values the first places."""
    if count >= len(values):
        return np.arange(len(values))
    least = np.partition(values, len(values) - count)[len(values) - count]
    chosen = values > least
    chosen[np.flatnonzero(values == least)[: count - np.count_nonzero(chosen)]] = True
    return np.flatnonzero(chosen)


@dataclass(frozen=True)
class TokenLogProbs:
    """The drawn token's log-probability, and (id, log-probability) of the likeliest ones."""

    log_prob: float
    top: tuple[tuple[int, float], ...] = ()
