"""A document's text as token ids, tokenised once and alone, and the spans it is cut into."""

from collections.abc import Sequence
from typing import Protocol

from legokv.documents.document import TokenSpan
from legokv.errors import InvalidRequest

# Closes every document before it is tokenised, so that whatever comes next in a prompt starts
# after a blank line and the joined text never needs to be tokenised again.
DOCUMENT_END = "\n\n"

# No cut leaves a last chunk of fewer tokens: LegoLink would recompute nearly all of it.
MIN_TAIL_TOKENS = 16

_STOPS = (".", "!", "?")
_WIDE_STOPS = ("。", "！", "？", "．", "｡")  # noqa: RUF001
_CLOSERS = "\"')]}”’»」』）"  # noqa: RUF001

# Tokens decoded before a place to see what stands there: a stop and the quote that closes it
# may span several tokens each.
_CONTEXT_TOKENS = 8


class TextCodec(Protocol):
    """What cutting needs of a tokenizer: no special tokens added, none parsed."""

    def encode(self, text: str, /, *, first: bool = False) -> list[int]: ...

    def decode(self, ids: list[int], /) -> str: ...


def document_token_ids(text: str, codec: TextCodec) -> TokenSpan:
    """The token ids of the whole document, its DOCUMENT_END included."""
    return tuple(codec.encode(text + DOCUMENT_END))


def is_tokenised(text: str, ids: TokenSpan, codec: TextCodec) -> bool:
    """Whether `ids` are the document's, or what versions before 2026-11-29 made of it.

    These put a blank before a document, where the tokenizer puts one before a text.
    """
    return ids == document_token_ids(text, codec) or ids == tuple(
        codec.encode(text + DOCUMENT_END, first=True)
    )


def cut(token_ids: Sequence[int], max_chunk_tokens: int, codec: TextCodec) -> tuple[TokenSpan, ...]:
    """Spans of 1 to `max_chunk_tokens` tokens that joined are `token_ids`.

    A span ends at the last sentence end in its last quarter, else at its limit; the rest of the
    document, if it fits, is the last span. The last one has at least MIN_TAIL_TOKENS tokens where
    the document has as many and the limit is at least four times that.
    """
    if max_chunk_tokens < 1:
        raise InvalidRequest(f"a chunk holds at least 1 token, not {max_chunk_tokens}")
    ids, spans, start = tuple(token_ids), [], 0
    while len(ids) - start > max_chunk_tokens:
        limit = _span_limit(len(ids) - start, max_chunk_tokens)
        end = _sentence_end(ids, start + limit - limit // 4, start + limit, codec)
        end = start + limit if end is None else end
        spans.append(ids[start:end])
        start = end
    if start < len(ids):
        spans.append(ids[start:])
    return tuple(spans)


def _span_limit(num_left: int, max_chunk_tokens: int) -> int:
    tail = num_left - max_chunk_tokens
    if tail < MIN_TAIL_TOKENS and max_chunk_tokens >= 4 * MIN_TAIL_TOKENS:
        return num_left - MIN_TAIL_TOKENS
    return max_chunk_tokens


def _sentence_end(ids: TokenSpan, first: int, last: int, codec: TextCodec) -> int | None:
    """The last place from `first` to `last` right after a sentence; None if there is none."""
    places = range(last, first - 1, -1)
    return next((place for place in places if _ends_sentence(ids, place, codec)), None)


def _ends_sentence(ids: TokenSpan, place: int, codec: TextCodec) -> bool:
    start = max(0, place - _CONTEXT_TOKENS)
    before = codec.decode(list(ids[start:place]))
    if before.endswith("\n"):
        return True
    stop = before.rstrip(_CLOSERS)
    if stop.endswith(_WIDE_STOPS):
        return True
    # A full stop followed by no space is a number, a name or an abbreviation: "3.14".
    longer = codec.decode(list(ids[start : place + 1]))
    followed_by_space = longer.startswith(before) and longer[len(before) :][:1].isspace()
    return stop.endswith(_STOPS) and followed_by_space
