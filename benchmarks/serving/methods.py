"""How each reuse method asks the running server: a request's fields by method."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.record.names import UnknownName, legolink_tokens
from benchmarks.serving import texts

NOT_SERVED = {
    "cacheblend-15": "it needs its own forward pass, which is in benchmarks/reuse and not in the "
    "server's engine",
}


@dataclass(frozen=True)
class Corpus:
    """The registered documents: their ids, and their texts for methods that send text."""

    ids: Sequence[str]
    document_tokens: int

    def text(self, number: int) -> str:
        return texts.document(number, self.document_tokens)


Fields = dict[str, object]
Method = Callable[[Corpus, Sequence[int], str], Fields]


def method(name: str) -> Method:
    """full, prefix or legolink-K; UnknownName, with the reason where there is one."""
    if name in _NAMED:
        return _NAMED[name]
    link_tokens = legolink_tokens(name)
    if link_tokens is not None:
        return _legolink(link_tokens)
    if name in NOT_SERVED:
        raise UnknownName(f"{name} is not served: {NOT_SERVED[name]}")
    raise UnknownName(f"unknown method '{name}'; known are {', '.join(_NAMED)} and legolink-K")


def _legolink(link_tokens: int) -> Method:
    def fields(corpus: Corpus, documents: Sequence[int], question: str) -> Fields:
        ids = [corpus.ids[number] for number in documents]
        return {"text_input": question, "document_ids": ids, "link_tokens": link_tokens}

    return fields


def _full(corpus: Corpus, documents: Sequence[int], question: str) -> Fields:
    ids = [corpus.ids[number] for number in documents]
    return {"text_input": question, "document_ids": ids, "mode": "full"}


def _prefix(corpus: Corpus, documents: Sequence[int], question: str) -> Fields:
    """Prefix caching to the depth of one document, made of what the server has.

    The system text stands first and is kept as a chunk at position 0, exact there: the first
    document is sent as system text, the others are fresh text before the question.
    """
    first, *others = (corpus.text(number) for number in documents)
    return {"text_input": "\n\n".join([*others, question]), "system_text": first}


_NAMED: dict[str, Method] = {"full": _full, "prefix": _prefix}
