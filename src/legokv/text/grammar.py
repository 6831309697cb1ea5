"""Which tokens an answer may go on with, so that it has its format: by llguidance's masks.

Whatever a format says, compiling it and asking it for a mask take bounded time and memory.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from legokv.errors import FormatFailed, InvalidRequest
from legokv.text.answer_format import AnswerFormat
from legokv.text.grammar_process import LIMITS, why_refused
from legokv.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

_OWN = "the answer's format: "
_NO_ANSWER = "no answer has it"
_TOO_MANY = "it takes more states than are allowed"
_IN_WORDS = {
    "NoExtension": _NO_ANSWER,
    "NoExtensionBias": _NO_ANSWER,
    "LexerTooComplex": _TOO_MANY,
    "ParserTooComplex": _TOO_MANY,
}
"""Of why llguidance goes no further."""
MAX_KEPT = 64
"""Compiled formats that are kept, the least recently asked for gone first."""
_JSON_OPTIONS: "JsonCompileOptions" = {
    # Of a schema's own "x-guidance", nothing is heard.
    "lenient": False,
    "coerce_one_of": False,
    "whitespace_flexible": True,
    # Bounded: small models fall into blanks and do not end.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
    "item_separator": ",",
    "key_separator": ":",
    "json_allow_general_unicode_escapes": False,
}


class GrammarState:
    """Where one answer stands in its format."""

    def __init__(self, matcher: LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> NDArray[np.bool_]:
        """Whether each token [V] may come next; FormatFailed if that takes too much to say."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise FormatFailed(f"{_OWN}{_line(self._matcher.get_error())}")
        return np.unpackbits(bits, count=self._vocab_size, bitorder="little").view(np.bool_)

    def accept(self, token_id: int) -> None:
        """The answer goes on with `token_id`; FormatFailed if it must not."""
        if not self._matcher.consume_token(token_id):
            raise FormatFailed(f"{_OWN}{_line(self._matcher.get_error())}")


class Grammars:
    """The formats of one model's answers, compiled. Safe to use from several threads.

    One is compiled at a time, so that all together take no more memory than one.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = list(eos_token_ids)
        self._compiling = threading.Lock()
        self._vocabulary: LLTokenizer | None = None
        self._kept: OrderedDict[AnswerFormat, LLMatcher] = OrderedDict()

    def begin(self, form: AnswerFormat, num_answers: int = 1) -> list[GrammarState]:
        """A state for each answer of that format; InvalidRequest with the reason if none can be."""
        if not self._eos_token_ids:
            raise InvalidRequest("the model has no end token: no answer ends where its format does")
        with self._compiling:
            matcher = self._kept.pop(form, None) or self._compiled(form)
            self._kept[form] = matcher
            if len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return [GrammarState(matcher.deep_copy(), self._vocab_size) for _ in range(num_answers)]

    def _compiled(self, form: AnswerFormat) -> LLMatcher:
        grammar = _grammar(form)
        reason = why_refused(grammar)
        if reason:
            raise _refused(form, reason)
        if self._vocabulary is None:
            self._vocabulary = self._open_vocabulary()
        matcher = LLMatcher(self._vocabulary, grammar, log_level=0, limits=LIMITS)
        if matcher.is_error():
            raise _refused(form, matcher.get_error())
        try:
            is_possible = GrammarState(matcher.deep_copy(), self._vocab_size).allowed().any()
        except FormatFailed as error:
            raise _refused(form, str(error).removeprefix(_OWN)) from None
        if not is_possible:
            raise _refused(form, _NO_ANSWER)
        return matcher

    def _open_vocabulary(self) -> LLTokenizer:
        return LLTokenizer(
            TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size, self._eos_token_ids)),
            n_vocab=self._vocab_size,
            eos_token=self._eos_token_ids,
        )


class _Vocabulary:
    """What llguidance asks of a tokenizer: each token's bytes, none of control tokens'."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        named = range(min(vocab_size, tokenizer.vocab_size))
        hidden = {i for i in named if tokenizer.control_text(i) is not None} | {*eos_token_ids}
        self.eos_token_id = eos_token_ids[0]
        self.special_token_ids = sorted({*hidden, *range(len(named), vocab_size)})
        self.tokens = [
            b"" if token_id in hidden else tokenizer.token_bytes(token_id) for token_id in named
        ]
        self.tokens += [b""] * (vocab_size - len(named))
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        whole = text if isinstance(text, str) else text.decode("utf-8", "replace")
        return self._tokenizer.encode(whole)


def _grammar(form: AnswerFormat) -> str:
    """In llguidance's own form; InvalidRequest for a number that it has no place for."""
    if form.kind == "json_schema":
        try:
            return LLMatcher.grammar_from_json_schema(form.source, overrides=_JSON_OPTIONS)
        except ValueError as error:
            raise _refused(form, str(error)) from None
    if form.kind == "regex":
        return LLMatcher.grammar_from_regex(form.source)
    texts = " | ".join(json.dumps(text) for text in json.loads(form.source))
    return LLMatcher.grammar_from_lark(f"start: {texts}")


def _refused(form: AnswerFormat, reason: str) -> InvalidRequest:
    return InvalidRequest(f"the {form.name} of response_format is refused: {_line(reason)}")


def _line(reason: str) -> str:
    """In one line of a sentence's length, and in words."""
    line = " ".join(reason.replace("<non-verbose/>", "").split())[:300]
    return _IN_WORDS.get(line, line)
