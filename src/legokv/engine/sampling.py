"""Choosing the next token from logits. Host arithmetic on one row; no state outside the sampler."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from legokv.engine.option_checks import check_number, check_whole
from legokv.errors import InvalidRequest, NotFinite

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
MIN_REPETITION_PENALTY, MAX_REPETITION_PENALTY = 0.01, 100.0
"""Wider than anybody uses; far outside them a logit leaves what floating point can tell apart."""

Logits = NDArray[np.float32] | NDArray[np.float64]


@dataclass(frozen=True)
class PenaltyFactors:
    """repetition 1 and frequency and presence 0 change nothing."""

    repetition: float
    frequency: float
    presence: float

    @property
    def change_nothing(self) -> bool:
        return (self.repetition, self.frequency, self.presence) == (1, 0, 0)


class Penalties:
    """What one answer's prompt and tokens so far take from the next logits.

    repetition, for a token of the prompt or the answer (CTRL, arXiv 1909.05858, as Hugging Face
    transformers applies it to either sign): a logit above 0 is divided by it, another multiplied.
    frequency and presence, for a token of the answer (the OpenAI API's definition): frequency times
    how often it came, and presence once, are subtracted.
    """

    def __init__(self, factors: PenaltyFactors, prompt_ids: Sequence[int]) -> None:
        self._factors = factors
        self._prompt_ids = np.unique(np.asarray(prompt_ids, np.int64))
        self._counts: dict[int, int] = {}

    def count(self, token_id: int) -> None:
        """The answer goes on with `token_id`."""
        self._counts[token_id] = self._counts.get(token_id, 0) + 1

    def lowered(self, logits: Logits) -> Logits:
        """`logits` [V] after repetition, then frequency, then presence; itself if they do nothing.

        The given array is not written to.
        """
        if self._factors.change_nothing:
            return logits
        ids = np.fromiter(self._counts, np.int64, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.float64, len(self._counts))
        changed = logits.astype(np.float64)
        seen = np.union1d(self._prompt_ids, ids)
        before, repetition = changed[seen], self._factors.repetition
        # What overflows is found, and said, before a token is drawn.
        with np.errstate(over="ignore", invalid="ignore"):
            changed[seen] = np.where(before > 0, before / repetition, before * repetition)
            changed[ids] -= self._factors.frequency * counts + self._factors.presence
        return changed


_FEW_TOKENS = 256


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn; InvalidRequest for a value out of range.

    The penalties change the logits (see `Penalties`), then temperature, top_k, top_p and
    min_p choose in this order.

    temperature: logits are divided by it, 0.01 to 100; 0 is greedy.
    top_k: so many likeliest tokens are kept; 0 keeps all.
    top_p: the likeliest that together have this share are kept, above 0 to 1; 1 keeps all.
    seed: of the random numbers, 0 or more; None draws one.
    min_p: tokens at least this share as likely as the likeliest are kept, 0 to 1; 0 keeps all
        (arXiv 2407.01082).
    repetition_penalty: 0.01 to 100; 1 changes nothing.
    presence_penalty, frequency_penalty: -2 to 2; 0 changes nothing.

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

    def __post_init__(self) -> None:
        check_number("temperature", self.temperature, 0, MAX_TEMPERATURE)
        if self.temperature:
            check_number("temperature above 0", self.temperature, MIN_TEMPERATURE, MAX_TEMPERATURE)
        check_whole("top_k", self.top_k, 0)
        check_number("top_p", self.top_p, 0, 1)
        if not self.top_p:
            raise InvalidRequest(f"top_p is above 0 and at most 1, not {self.top_p}")
        if self.seed is not None:
            check_whole("seed", self.seed, 0)
        check_number("min_p", self.min_p, 0, 1)
        check_number(
            "repetition_penalty",
            self.repetition_penalty,
            MIN_REPETITION_PENALTY,
            MAX_REPETITION_PENALTY,
        )
        for name in ("presence_penalty", "frequency_penalty"):
            check_number(name, getattr(self, name), -2, 2)


def check_logits(logits: Logits) -> None:
    """NotFinite, with how many, if any of `logits` [V] is NaN or infinite."""
    if np.isfinite(logits).all():
        return
    num_nan, num_infinite = int(np.isnan(logits).sum()), int(np.isinf(logits).sum())
    raise NotFinite(
        f"of {len(logits)} logits for the next token {num_nan} are NaN and {num_infinite} "
        "infinite: the prompt or the weights overflow the type that is computed in; ask something "
        "else, or try the setting dtype float32"
    )


class Sampler:
    """Draws the tokens of one answer; the same seed, index and logits give the same tokens.

    `index` is the answer's number among those of its request: each has its own stream of random
    numbers from the one seed, and the first has the one that a single answer has.
    """

    def __init__(
        self, options: SamplingOptions, prompt_ids: Sequence[int] = (), index: int = 0
    ) -> None:
        self._options = options
        self._penalties = Penalties(
            PenaltyFactors(
                options.repetition_penalty, options.frequency_penalty, options.presence_penalty
            ),
            prompt_ids,
        )
        seeds = np.random.SeedSequence(options.seed, spawn_key=(index,) if index else ())
        self._random = np.random.Generator(np.random.PCG64(seeds))

    def next(self, logits: NDArray[np.float32], banned: Sequence[int] = ()) -> int:
        """A token id drawn from `logits` float32 [V], none of those `banned`.

        NotFinite, and nothing is drawn, if a logit is NaN or infinite, whatever the options are.
        """
        lowered = self._penalties.lowered(logits)
        check_logits(lowered)
        if banned:
            lowered = lowered.copy()
            lowered[list(banned)] = -np.inf
        token_id = self._drawn(lowered) if self._options.temperature else int(lowered.argmax())
        self._penalties.count(token_id)
        return token_id

    def _drawn(self, logits: Logits) -> int:
        """One random number chooses among the candidates, which stand in order of their ids.

        So that logits which differ by rounding give the same token but at the edges of its share.
        """
        ids, weights = _candidates(logits, self._options)
        shares = np.cumsum(weights)
        place = np.searchsorted(shares, self._random.random() * shares[-1], side="right")
        # A product that rounds up to the whole sum is past the end.
        return int(ids[min(place, np.searchsorted(shares, shares[-1]))])


def _candidates(
    logits: Logits, options: SamplingOptions
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Ids that may be drawn, ascending, and their weights, the largest being 1."""
    ids = largest(logits, options.top_k or len(logits))
    kept = logits[ids].astype(np.float64)
    with np.errstate(over="ignore"):
        weights = np.exp((kept - kept.max()) / options.temperature)
    if options.top_p < 1:
        inside = largest(weights, _num_reaching(weights, options.top_p))
        ids, weights = ids[inside], weights[inside]
    if options.min_p > 0:
        likely = weights >= options.min_p
        ids, weights = ids[likely], weights[likely]
    return ids, weights


def _num_reaching(weights: NDArray[np.float64], share: float) -> int:
    """How many of the largest weights it takes to reach `share` of their sum.

    Looked for among a few of them first: a model's likeliest tokens mostly have it.
    """
    threshold = share * weights.sum()
    looked_at = min(_FEW_TOKENS, len(weights))
    while True:
        some = np.partition(weights, -looked_at)[-looked_at:]
        shares = np.cumsum(np.sort(some)[::-1])
        if shares[-1] >= threshold or looked_at == len(weights):
            return min(int(np.searchsorted(shares, threshold)) + 1, looked_at)
        looked_at = min(16 * looked_at, len(weights))


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


def token_log_probs(logits: NDArray[np.float32], token_id: int, num_top: int) -> TokenLogProbs:
    """Natural logarithms of softmax(`logits` float32 [V]), before any penalty or temperature.

    The `num_top` likeliest come likeliest first, of equal ones the lowest id first.
    """
    exact = logits.astype(np.float64)
    most = exact.max()
    log_probs = exact - (most + np.log(np.exp(exact - most).sum()))
    ids = largest(logits, num_top) if num_top else np.array([], np.int64)
    order = ids[np.argsort(-log_probs[ids], kind="stable")]
    top = tuple((int(place), float(log_probs[place])) for place in order)
    return TokenLogProbs(float(log_probs[token_id]), top)
