"""One answer on its way: its tokens drawn, its text found, its end recognised. No pages here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from legokv.chunks.chunk import Chunk
from legokv.engine.request import AnswerOptions, GenerateRequest, Token
from legokv.engine.sampling import Allowed, Draw, Sampler, TokenLogProbs, largest
from legokv.text.answer_format import read_format
from legokv.text.grammar import Grammars
from legokv.text.stop_words import StopWords
from legokv.text.stream import TextStream, TokenTexts

_BLOCK = 64
"""Tokens whose largest logit is looked at first."""
_PART_BLOCKS = 512
"""Whose weights are summed at once."""


@dataclass(frozen=True)
class Ending:
    """When an answer ends, besides its stop words."""

    eos_token_ids: tuple[int, ...]
    max_tokens: int
    min_tokens: int = 0


class Answer:
    """Answer number `index` of a request; `finish_reason` is None until it has ended.

    `drawn_at` is when its last token was drawn, by time.monotonic; its owner keeps it.
    """

    def __init__(
        self,
        sampler: Sampler,
        text: TextStream,
        ending: Ending,
        options: AnswerOptions,
        index: int = 0,
    ) -> None:
        self.num_tokens = 0
        self.finish_reason: str | None = None
        self.drawn_at = 0.0
        self._sampler = sampler
        self._text = text
        self._ending = ending
        self._options = options
        self._index = index

    def draw(self, row: int) -> Draw:
        """What to draw as its next token, of row `row` of a step's logits."""
        ending = self._ending
        banned = ending.eos_token_ids if self.num_tokens < ending.min_tokens else ()
        return self._sampler.draw(row, banned)

    def take(self, token_id: int, logits: Tensor, *, late: bool) -> Token:
        """The token drawn from `logits` [V]; the last one if it is `late`, whatever it is."""
        ending = self._ending
        self._sampler.count(token_id)
        self.num_tokens += 1
        ended = token_id in ending.eos_token_ids
        may_stop = self.num_tokens > ending.min_tokens
        text = "" if ended else self._text.push(token_id, may_stop=may_stop)
        self.finish_reason = self._reason(ended=ended, late=late)
        if self.finish_reason is not None:
            text += self._text.finish()
        log_probs = self._log_probs(logits, token_id)
        return Token(token_id, text, self.finish_reason, self._index, log_probs)

    def _reason(self, *, ended: bool, late: bool) -> str | None:
        if ended or self._text.stopped:
            return "stop"
        if self.num_tokens == self._ending.max_tokens:
            return "length"
        return "timeout" if late else None

    def _log_probs(self, logits: Tensor, token_id: int) -> TokenLogProbs | None:
        """Of logits that come to the host for it alone."""
        if not self._options.return_log_probs:
            return None
        return token_log_probs(logits.float().cpu(), token_id, self._options.num_top_log_probs)


@torch.inference_mode()
def token_log_probs(logits: Tensor, token_id: int, num_top: int) -> TokenLogProbs:
    """Natural logarithms of softmax(`logits` float32 [V]), before any penalty or temperature.

    In float64, the same on any number of threads. The `num_top` likeliest come likeliest first, of
    equal ones the lowest id first.
    """
    spare = -len(logits) % _BLOCK
    whole = (F.pad(logits, (0, spare), value=-torch.inf) if spare else logits).view(-1, _BLOCK)
    peaks = whole.amax(-1)
    most = float(peaks.amax())
    # By numbers of blocks that no thread shares, and that need no memory of the system's.
    parts = [
        part.to(torch.float64).sub_(most).exp_().sum() for part in torch.split(whole, _PART_BLOCKS)
    ]
    shift = most + math.log(sum(map(float, parts)))
    # In NumPy: of so few numbers torch's calls cost more than what they do.
    ids = _likeliest(whole.numpy(), peaks.numpy(), min(num_top, len(logits)))
    top = tuple((int(each), float(logits[each]) - shift) for each in ids)
    return TokenLogProbs(float(logits[token_id]) - shift, top)


def _likeliest(
    whole: NDArray[np.float32], peaks: NDArray[np.float32], count: int
) -> NDArray[np.int64]:
    """Ids of the `count` largest of `whole` [blocks, _BLOCK], likeliest and lowest first."""
    if count == 0:
        return np.zeros(0, np.int64)
    # As many blocks have the largest peaks, of equal ones the first, and the likeliest in them.
    blocks = largest(peaks, count)
    values = whole[blocks].ravel()
    places = largest(values, count)
    places = places[np.argsort(-values[places], kind="stable")]
    ids: NDArray[np.int64] = blocks[places // _BLOCK] * _BLOCK + places % _BLOCK
    return ids


def answers_to(
    request: GenerateRequest,
    texts: TokenTexts,
    eos_token_ids: tuple[int, ...],
    grammars: Grammars | None = None,
) -> list[Answer]:
    """The answers a request asks for, none begun; its stop tokens end them as the model's do.

    InvalidRequest if `grammars` cannot hold them to the request's format.
    """
    options = request.answering
    ends = tuple(dict.fromkeys((*eos_token_ids, *options.stop_token_ids)))
    ending = Ending(ends, request.max_tokens, options.min_tokens)
    prompt_ids = _prompt_ids(request)
    states = _states(request, grammars)
    words = StopWords(request.stop_words)
    return [
        Answer(
            Sampler(request.sampling, prompt_ids, index, states[index]),
            TextStream(texts, words),
            ending,
            options,
            index,
        )
        for index in range(options.num_return_sequences)
    ]


def _states(request: GenerateRequest, grammars: Grammars | None) -> Sequence[Allowed | None]:
    """Where each answer stands in the format that is asked for; None each without one."""
    count = request.answering.num_return_sequences
    form = read_format(request.answering.response_format)
    if form is None:
        return [None] * count
    assert grammars is not None, "who takes formats has grammars"
    return grammars.begin(form, count)


def _prompt_ids(request: GenerateRequest) -> list[int]:
    """The prompt's token ids, if its sampler looks at them."""
    if request.sampling.repetition_penalty == 1:
        return []
    pieces = [s.token_ids if isinstance(s, Chunk) else s for s in request.segments]
    return [int(token_id) for piece in pieces for token_id in piece]
