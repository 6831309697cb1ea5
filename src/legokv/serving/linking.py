"""A prompt's pieces for the engine: its head, each document as it is compiled, and the question."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from legokv.documents.document import StoredChunk
from legokv.engine.naming import ChunkNaming
from legokv.serving.heads import OtherHeads
from legokv.serving.messages import PromptSegment
from legokv.serving.pieces import (
    document_segments,
    head_segments,
    segments_as_registered,
)
from legokv.text.conversation import ConversationPrompt

HeadWord = Literal["own", "other"]


@dataclass(frozen=True)
class Linked:
    """A prompt's segments, and what its documents are compiled behind.

    head: "own" where that is this prompt's head, of all of them, "other" where it is anything else.
    copies: the last keys of documents that are compiled behind this head besides their own.
    documents: the keys of each document's chunks, in the order of the request.
    """

    segments: tuple[PromptSegment, ...]
    head: HeadWord
    copies: tuple[str, ...]
    documents: tuple[frozenset[str | None], ...] = ()

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt."""
        return sum(len(piece.token_ids) for piece in self.segments if piece.in_prompt)


class Linking:
    """Chooses how documents stand in prompts. Safe to use from several threads."""

    def __init__(self, naming: ChunkNaming, other_heads: OtherHeads) -> None:
        self._naming = naming
        self._other_heads = other_heads

    def linked(
        self,
        prompt: ConversationPrompt,
        documents: Sequence[Sequence[StoredChunk]],
        namespace: str,
        mode: str,
        *,
        persistent_head: bool,
    ) -> Linked:
        """The prompt over documents, each given by its chunks."""
        head = head_segments(self._naming, prompt.head_ids, namespace, persistent=persistent_head)
        placings = self._placings(documents, namespace, mode, head)
        is_other = mode != "full" and any(placed.head == "other" for placed in placings)
        pieces = [*head, *_in_order(prompt, placings)]
        return Linked(
            tuple(pieces),
            "other" if is_other else "own",
            tuple(str(placed.copy) for placed in placings if placed.copy),
            tuple(frozenset(piece.key for piece in placed.pieces) for placed in placings),
        )

    def _placings(
        self,
        documents: Sequence[Sequence[StoredChunk]],
        namespace: str,
        mode: str,
        head: Sequence[PromptSegment],
    ) -> list["_Placed"]:
        if mode == "legolink-0":
            alone = [document_segments(self._naming, item, namespace) for item in documents]
            return [_Placed(tuple(pieces), "other") for pieces in alone]
        placings = [self._as_registered(item, namespace, head) for item in documents]
        is_other = any(placed.head == "other" for placed in placings)
        if is_other and head and self._other_heads.compiles:
            return self._with_copies(placings, documents, namespace, head[0])
        return placings

    def _as_registered(
        self, document: Sequence[StoredChunk], namespace: str, head: Sequence[PromptSegment]
    ) -> "_Placed":
        """One document's pieces, and whether they are compiled behind this head."""
        registered = segments_as_registered(self._naming, document, namespace)
        first = next(piece for piece in registered if piece.in_prompt)
        if first.behind == (head[0].key if head else None):
            return _Placed(tuple(piece for piece in registered if piece.in_prompt), "own")
        return _Placed(registered, "other")

    def _with_copies(
        self,
        placings: Sequence["_Placed"],
        documents: Sequence[Sequence[StoredChunk]],
        namespace: str,
        head: PromptSegment,
    ) -> list["_Placed"]:
        """The documents, those that are compiled behind this head besides in that form."""
        self._other_heads.note(str(head.key))
        placed: list[_Placed] = []
        for one, document in zip(placings, documents, strict=True):
            # Without the keys that the registry has, which are not of this form.
            anew = [replace(chunk, key=None) for chunk in document]
            copy = document_segments(self._naming, anew, namespace, [head], persistent=False)
            if one.head == "other" and self._other_heads.has(namespace, head, copy):
                one = _Placed(tuple(copy), "own", copy[-1].key)
            placed.append(one)
        return placed


@dataclass(frozen=True)
class _Placed:
    pieces: tuple[PromptSegment, ...]
    head: HeadWord
    copy: str | None = None


def _in_order(prompt: ConversationPrompt, documents: Sequence[_Placed]) -> Iterator[PromptSegment]:
    """Texts and documents' pieces; a head that is listed for several of them comes once."""
    heads: set[str | None] = set()
    for part in prompt.rest:
        if not isinstance(part, int):
            yield PromptSegment(part)
            continue
        for piece in documents[part].pieces:
            if piece.in_prompt or piece.key not in heads:
                yield piece
            if not piece.in_prompt:
                heads.add(piece.key)
