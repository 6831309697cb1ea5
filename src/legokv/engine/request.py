"""What a caller asks of the engine and what it is told: plain data, checked before it runs."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from legokv.chunks.chunk import Chunk, TokenIds
from legokv.engine.option_checks import (
    check_flag,
    check_kind,
    check_number,
    check_texts,
    check_whole,
    check_whole_numbers,
    shown,
)
from legokv.engine.sampling import SamplingOptions, TokenLogProbs
from legokv.errors import InvalidRequest
from legokv.link.link import Segment
from legokv.link.policy import (
    Budget,
    ByScores,
    Policy,
    Share,
    everything,
    legolink,
    nothing,
    spread,
)
from legokv.model.config import ModelConfig
from legokv.text.answer_format import read_format

MODES_WITH_DRIFT = ("guided-drift", "guided-ranked-drift")
MODES_BY_RANKING = ("ranked", "guided-ranked", "guided-ranked-drift")
MODES_BY_ATTENTION = ("guided", "guided-ranked", *MODES_WITH_DRIFT)
MODES_WITH_BUDGET = ("legolink", "spread", "ranked", "guided", "guided-ranked", *MODES_WITH_DRIFT)
MODES = (*MODES_WITH_BUDGET, "legolink-0", "full")
LINK_TOKENS = 16
DRIFT_PROBES = 4
"""How many tokens of each document are recomputed for its drift, whatever their scores."""
DUMMY_TOKENS = 4
"""How many dummies stand before a chunk compiled for LegoLink-0 (arXiv 2410.15332)."""

MAX_RETURN_SEQUENCES = 128
MAX_TOP_LOG_PROBS = 20
MAX_TIMEOUT_SECONDS = 604800.0
"""A week."""
MAX_STOP_WORDS = 128
MAX_STOP_BYTES = 4096
"""Most bytes of a request's stop words together, in UTF-8: their automaton takes milliseconds."""
MAX_STOP_TOKEN_IDS = 128


@dataclass(frozen=True)
class AnswerOptions:
    """What is wanted of an answer besides its tokens; InvalidRequest for a value out of range.

    min_tokens: neither an end token nor a stop word among so many first tokens ends an answer.
    stop_token_ids: tokens that end an answer as the model's own end tokens do, at most 128.
    response_format: JSON of what each answer is to be, see `legokv.text.answer_format`; None: any
        text. Where an answer has it whole, an end token comes, also before min_tokens; where it is
        cut (max_tokens, a stop word, a stop token) it has it in part.
    num_return_sequences: answers drawn from one prompt, 1 to 128, each from the seed and its
        number.
    return_log_probs: each token with its log-probability, a natural logarithm.
    num_top_log_probs: also those of so many likeliest tokens, 0 to 20.
    timeout_seconds: after them a request that has begun to answer ends with its next token and
        finish reason "timeout"; one that has not fails with TimedOut. At most a week; None: no
        limit.

    >>> import legokv
    >>> legokv.AnswerOptions(return_log_probs=True, num_top_log_probs=3).min_tokens
    0
    >>> legokv.AnswerOptions(timeout_seconds=0)
    Traceback (most recent call last):
        ...
    legokv.errors.InvalidRequest: timeout_seconds is above 0, not 0
    """

    min_tokens: int = 0
    num_return_sequences: int = 1
    return_log_probs: bool = False
    num_top_log_probs: int = 0
    timeout_seconds: float | None = None
    stop_token_ids: tuple[int, ...] = ()
    response_format: str | None = None

    def __post_init__(self) -> None:
        check_whole("min_tokens", self.min_tokens, 0)
        check_whole("num_return_sequences", self.num_return_sequences, 1, MAX_RETURN_SEQUENCES)
        check_flag("return_log_probs", self.return_log_probs)
        check_whole("num_top_log_probs", self.num_top_log_probs, 0, MAX_TOP_LOG_PROBS)
        if self.num_top_log_probs and not self.return_log_probs:
            raise InvalidRequest(
                f"num_top_log_probs is {self.num_top_log_probs} without return_log_probs"
            )
        if self.timeout_seconds is not None:
            check_number("timeout_seconds", self.timeout_seconds, 0, MAX_TIMEOUT_SECONDS)
            if not self.timeout_seconds:
                raise InvalidRequest(f"timeout_seconds is above 0, not {self.timeout_seconds}")
        if not isinstance(self.response_format, str | None):
            raise InvalidRequest(f"response_format is JSON, not {shown(self.response_format)}")
        read_format(self.response_format)
        check_whole_numbers("stop_token_ids", self.stop_token_ids)
        if len(self.stop_token_ids) > MAX_STOP_TOKEN_IDS:
            raise InvalidRequest(
                f"stop_token_ids has {len(self.stop_token_ids)} ids, at most {MAX_STOP_TOKEN_IDS} "
                "are taken"
            )


@dataclass(frozen=True)
class GenerateRequest:
    """A prompt of segments and how to answer it; InvalidRequest for what is out of range.

    segments: chunks and token ids, in prompt order.
    max_tokens: of each answer at most. 0: the prompt is computed, its logits are the answer.
    mode: "legolink" recomputes the first tokens of each document but what stands first, "spread"
        as many spread evenly over it, "guided" as many in all, those that the question attends to
        most, "ranked" those first in the chunks' rankings (`Engine.rank`), "guided-ranked" those
        first by the product of both, "guided-drift" and "guided-ranked-drift" the same, but that
        4 of each document's are spread evenly over it, and its others move as its recomputed did
        on the mean; "legolink-0" none, over documents compiled behind dummy
        tokens; "full" all.
    link_tokens: how many of each document, 0 or more, in all modes but the last two; 16 unless
        told.
    sampling: how tokens are drawn, greedily unless told.
    stop_words: texts before the first of which an answer ends, at most 128 and 4,096 bytes.
    answering: how many answers, and what is told of them.
    recompute_percent: in place of link_tokens, a share of each document's tokens, 0 to 100.
    namespace: whose requests may go on from this one's own pages, and it from theirs, where an
        engine keeps them (`kept_tokens`); None: nobody's.

    >>> import legokv
    >>> engine = legokv.Engine.open("out/engines/llama")
    >>> chunk = engine.compile(engine.tokenizer.encode("The ferry leaves at seven."))
    >>> draw = legokv.SamplingOptions(temperature=0.7, seed=1)
    >>> two = legokv.AnswerOptions(num_return_sequences=2)
    >>> request = legokv.GenerateRequest([chunk, [5, 6]], 8, sampling=draw, answering=two)
    >>> sorted({token.sequence_index for token in engine.answer(request)})
    [0, 1]
    """

    segments: Sequence[Segment]
    max_tokens: int
    mode: str = "legolink"
    link_tokens: int | None = None
    sampling: SamplingOptions = field(default_factory=SamplingOptions)
    stop_words: tuple[str, ...] = ()
    answering: AnswerOptions = field(default_factory=AnswerOptions)
    recompute_percent: float | None = None
    namespace: str | None = None

    def __post_init__(self) -> None:
        check_budget(self.mode, self.link_tokens, self.recompute_percent)
        check_whole("max_tokens", self.max_tokens, 0)
        check_kind("sampling", self.sampling, SamplingOptions)
        check_texts("stop_words", self.stop_words)
        check_stop_words(self.stop_words)
        check_kind("answering", self.answering, AnswerOptions)
        if self.answering.min_tokens > self.max_tokens:
            raise InvalidRequest(
                f"min_tokens {self.answering.min_tokens} is above max_tokens {self.max_tokens}"
            )
        num_answers = self.answering.num_return_sequences
        if num_answers > 1 and not (self.max_tokens and self.sampling.temperature):
            raise InvalidRequest(
                f"num_return_sequences {num_answers} needs a temperature above 0 and max_tokens of "
                f"1 or more, not {self.sampling.temperature} and {self.max_tokens}: "
                "without a draw all answers are the same"
            )

    @property
    def policy(self) -> Policy:
        """Which cached tokens are recomputed."""
        if self.mode in MODES_WITH_BUDGET:
            tokens = LINK_TOKENS if self.link_tokens is None else self.link_tokens
            share = self.recompute_percent
            budget = tokens if share is None else Share(share)
            return _POLICIES[self.mode](budget)
        return everything if self.mode == "full" else nothing


def check_stop_words(words: Sequence[str]) -> None:
    """InvalidRequest for an empty word, too many of them or too many bytes."""
    if "" in words:
        raise InvalidRequest(f"stop word {words.index('') + 1} of {len(words)} is empty")
    if len(words) > MAX_STOP_WORDS:
        raise InvalidRequest(
            f"stop_words has {len(words)} words, at most {MAX_STOP_WORDS} are taken"
        )
    num_bytes = sum(len(word.encode()) for word in words)
    if num_bytes > MAX_STOP_BYTES:
        raise InvalidRequest(
            f"stop_words has {num_bytes} bytes together, at most {MAX_STOP_BYTES} are taken"
        )


def check_stop_token_ids(ids: Sequence[int], config: ModelConfig) -> None:
    """InvalidRequest for an id that is no token's, or where no token would be left."""
    for token_id in ids:
        if not 0 <= token_id < config.vocab_size:
            raise InvalidRequest(
                f"stop_token_ids has {token_id}: token ids lie between 0 and "
                f"{config.vocab_size - 1}"
            )
    num_ends = len({*ids, *config.eos_token_ids})
    if num_ends == config.vocab_size:
        raise InvalidRequest(f"with stop_token_ids all {num_ends} tokens of the model are ends")


def check_biased_ids(ids: Iterable[int], config: ModelConfig) -> None:
    """InvalidRequest for an id that is no token's."""
    for token_id in ids:
        if token_id >= config.vocab_size:
            raise InvalidRequest(
                f"logit_bias has {token_id}: token ids lie between 0 and {config.vocab_size - 1}"
            )


_POLICIES: dict[str, Callable[[Budget], Policy]] = {
    "legolink": legolink,
    "spread": spread,
    **dict.fromkeys((*MODES_BY_RANKING, *MODES_BY_ATTENTION), ByScores),
    **dict.fromkeys(MODES_WITH_DRIFT, partial(ByScores, num_probes=DRIFT_PROBES, drift=True)),
}


def check_budget(mode: str, link_tokens: object, recompute_percent: object) -> None:
    """InvalidRequest for an unknown mode, or a budget that is out of range, not its, or one of two.

    The full modes take any link_tokens, which mean nothing there: callers give the same to all.
    """
    if mode not in MODES:
        raise InvalidRequest(f"mode is one of {', '.join(MODES)}, not '{mode}'")
    if link_tokens is not None:
        check_whole("link_tokens", link_tokens, 0)
    if recompute_percent is None:
        return
    check_number("recompute_percent", recompute_percent, 0, 100)
    if link_tokens is not None:
        raise InvalidRequest(
            f"link_tokens {link_tokens} and recompute_percent {recompute_percent} are both given: "
            "one of them says how much is recomputed"
        )
    if mode not in MODES_WITH_BUDGET:
        raise InvalidRequest(
            f"recompute_percent {recompute_percent} belongs to modes "
            f"{', '.join(MODES_WITH_BUDGET)}, not to '{mode}'"
        )


def check_context(num_tokens: int, max_tokens: int, config: ModelConfig) -> None:
    """InvalidRequest if prompt and answer together pass the model's context."""
    if num_tokens + max_tokens > config.context_len:
        raise InvalidRequest(
            f"{num_tokens} prompt tokens and max_tokens {max_tokens} exceed the model's context "
            f"of {config.context_len} tokens"
        )


def check_token_ids(ids: TokenIds, config: ModelConfig) -> None:
    """InvalidRequest for what is no flat sequence of ids, or one that the vocabulary has not."""
    try:
        array = np.asarray(ids)
    except ValueError:  # rows of different lengths
        array = np.zeros((0, 0))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidRequest(f"token ids are a flat sequence of integers, not {shown(ids)}")
    if array.size and not (array.min() >= 0 and array.max() < config.vocab_size):
        raise InvalidRequest(
            f"token ids lie between 0 and {config.vocab_size - 1}, not {array.min()} to "
            f"{array.max()}"
        )


def check_chunks(spans: Iterable[TokenIds], config: ModelConfig) -> None:
    """InvalidRequest for a span without tokens, past the context, or with one that is no token."""
    for ids in spans:
        check_token_ids(ids, config)
        if not len(ids):
            raise InvalidRequest("a chunk has 0 tokens; it needs at least one")
        check_context(len(ids), 0, config)


def check_behind(behind: Chunk, num_tokens: int, namespace: str, config: ModelConfig) -> None:
    """InvalidRequest if a chunk of so many tokens cannot be compiled behind that one."""
    if behind.namespace != namespace:
        raise InvalidRequest(
            f"a chunk of namespace '{namespace}' cannot be compiled behind one of "
            f"'{behind.namespace}'"
        )
    before = behind.start + behind.num_tokens
    if before + num_tokens > config.context_len:
        raise InvalidRequest(
            f"{num_tokens} tokens behind {before} others exceed the model's context of "
            f"{config.context_len} tokens"
        )


def check_prompt(segments: Sequence[Segment], max_tokens: int, config: ModelConfig) -> None:
    """InvalidRequest for what is no token, or a prompt and an answer past the model's context."""
    if isinstance(segments, str) or not isinstance(segments, Sequence):
        raise InvalidRequest(f"segments are a list of chunks and token ids, not {shown(segments)}")
    spans = [segment.token_ids if isinstance(segment, Chunk) else segment for segment in segments]
    for ids in spans:
        check_token_ids(ids, config)
    check_context(sum(map(len, spans)), max_tokens, config)


@dataclass
class Usage:
    """What a request took. prompt = cached + recomputed + fresh tokens; times in seconds.

    `compiled_tokens` are those of chunks that were in no tier and had to be compiled first;
    `chunks_found` of `chunks_used` chunks were in one. `reused_tokens` of the cached are an ended
    request's own. Link time runs from having all pages to the
    first logits.
    """

    prompt_tokens: int
    cached_tokens: int
    recomputed_tokens: int
    fresh_tokens: int
    chunks_used: int
    chunks_found: int = 0
    compiled_tokens: int = 0
    reused_tokens: int = 0
    generated_tokens: int = 0
    queue_seconds: float = 0.0
    load_seconds: float = 0.0
    compile_seconds: float = 0.0
    link_seconds: float = 0.0
    time_to_first_token_seconds: float = 0.0


@dataclass(frozen=True)
class Token:
    """One generated token and the text that became certain with it (may be empty).

    `sequence_index` numbers the answers of a request; the last token of each has its
    finish_reason: "stop", "length" or "timeout".
    """

    id: int
    text: str
    finish_reason: str | None = None
    sequence_index: int = 0
    log_probs: TokenLogProbs | None = None


@dataclass(frozen=True)
class Finished:
    """The end of a job: why the last of its answers ended, and what all took together."""

    finish_reason: str
    usage: Usage
