"""From a conversation to a prompt's segments: the model's own template, filled once.

Documents may stand anywhere in any message, each a segment of its own. As in a single question
(`text.prompt`), texts are put in after the template was rendered: none becomes a control token.
"""

import hashlib
import json
import secrets
import threading
from array import array
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from legokv.errors import InvalidRequest, LegokvError, UnsupportedModel
from legokv.text.chat_template import Chat, ChatTemplate
from legokv.text.marks import Marks, Piece, Slot, as_written, documents_in
from legokv.text.switches import Switches, texts_in
from legokv.text.template_process import Rendering, TemplateProcess, render_apart
from legokv.text.tokenizer import Tokenizer

ROLES = ("system", "developer", "user", "assistant", "tool")
_TOLD = ("system", "developer")
_MAX_KEPT = 256
_RENDERING_SECONDS = 0.05


@dataclass(frozen=True)
class DocumentPart:
    """A registered document as a part of a message."""

    id: str


@dataclass(frozen=True)
class Turn:
    """One message: texts and documents in order, and what templates read beside them.

    `tool_calls` are JSON objects, whose ids are letters, digits, dashes and underscores.
    """

    role: str
    parts: tuple[str | DocumentPart, ...]
    name: str | None = None
    tool_calls: tuple[Mapping[str, Any], ...] = ()
    tool_call_id: str | None = None
    reasoning: str | None = None


@dataclass(frozen=True)
class Conversation:
    """Messages, and definitions of tools, which the template is given as they are."""

    turns: tuple[Turn, ...]
    tools: tuple[Mapping[str, Any], ...] = ()

    @property
    def document_ids(self) -> tuple[str, ...]:
        """The documents in the order in which they are said."""
        parts = (part for turn in self.turns for part in turn.parts)
        return tuple(part.id for part in parts if isinstance(part, DocumentPart))

    def named_texts(self) -> list[tuple[str, str]]:
        """Each text of a message, and what it is called in an error."""
        return [
            (f"message {number} of {len(self.turns)}", part)
            for number, turn in enumerate(self.turns, 1)
            for part in (*turn.parts, turn.reasoning)
            if isinstance(part, str)
        ]


@dataclass(frozen=True)
class ConversationPrompt:
    """The head, a chunk as in `Prompt`, and then fresh tokens or a document by its number.

    The head `is_own` if it has words of the request's. The `digest` is of all of it, and "" for a
    prompt that no conversation goes on from.
    """

    head_ids: tuple[int, ...]
    rest: tuple[tuple[int, ...] | int, ...]
    is_own: bool
    digest: str = ""


AnswerIds = Callable[[str, str], Sequence[int] | None]
"""Gives the tokens of an answer as they were drawn, by the digest of the prompt before it and its
text."""


class ConversationFormats:
    """What one model's template writes around texts and documents; kept by what is where.

    Safe to use from many threads.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        switches: Switches | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        """`switches` are those of every conversation that does not set them itself."""
        self._tokenizer = tokenizer
        self._switches = dict(switches or {})
        self._today = today
        self._kept: OrderedDict[str, tuple[Piece, ...]] = OrderedDict()
        self._changing = threading.Lock()
        self._process: TemplateProcess | None = None
        self._rendering = threading.Lock()

    def close(self) -> None:
        """End the process that renders."""
        with self._rendering:
            if self._process is not None:
                self._process.close()

    def prompt(
        self,
        conversation: Conversation,
        switches: Switches,
        answer_ids: AnswerIds = lambda digest, text: None,
    ) -> ConversationPrompt:
        """The conversation's prompt, up to where the next answer begins.

        InvalidRequest, in the template's words, if it refuses the messages, and for one that it
        leaves out.
        """
        template = self._tokenizer.chat_template
        if template is None:
            raise InvalidRequest(
                "this model has no chat template, which 'messages' need: ask with 'text_input'"
            )
        if "developer" not in template.source:
            turns = (
                replace(t, role="system") if t.role == _TOLD[1] else t for t in conversation.turns
            )
            conversation = replace(conversation, turns=tuple(turns))
        plain = _skeleton(conversation, Marks(""))
        slots = plain.marks.slots
        pieces = self._pieces(conversation, plain, {**self._switches, **switches})
        parts = _Parts(self._tokenizer, conversation.document_ids, answer_ids)
        for piece in pieces:
            if isinstance(piece, str):
                parts.add_template(piece)
            else:
                parts.add(slots[piece[0]], piece[1])
        return parts.prompt()

    def _pieces(
        self, conversation: Conversation, plain: "_Skeleton", switches: Switches
    ) -> tuple[Piece, ...]:
        """What is written around the texts; `plain` is the conversation with marks of no stem."""
        template = self._tokenizer.chat_template
        assert template is not None, "only a template renders"
        day = self._today() if template.is_dated else date.min
        key = json.dumps([plain.messages, plain.tools, switches, day.isoformat()], sort_keys=True)
        with self._changing:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        pieces = self._rendered(conversation, switches, day)
        with self._changing:
            self._kept[key] = pieces
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
        return pieces

    def _rendered(
        self, conversation: Conversation, switches: Switches, day: date
    ) -> tuple[Piece, ...]:
        for text in texts_in(switches):
            token = self._tokenizer.added_token_in(text)
            if token is not None:
                raise InvalidRequest(f"a template's switch holds the control token {token[:80]!r}")
        template = self._tokenizer.chat_template
        assert template is not None, "only a template renders"
        filled = _skeleton(conversation, Marks(secrets.token_hex(16)))
        marks = filled.marks
        chat = Chat(filled.messages, switches=switches, day=day, tools=filled.tools or None)
        try:
            (rendered,) = self._render(template, chat)
        except UnsupportedModel as error:
            rendered = error
        if isinstance(rendered, LegokvError):
            # The template was tried when the server started: it is what is said that it can't.
            raise InvalidRequest(str(rendered).replace(marks.stem, "…"))
        pieces = tuple(marks.split(rendered))
        _check_written(pieces, marks.slots)
        if any(isinstance(piece, str) and marks.stem in piece for piece in pieces):
            raise InvalidRequest("the chat template changes what it is given, letter by letter")
        return pieces

    def _render(self, template: ChatTemplate, chat: Chat) -> list[Rendering]:
        """By the process at hand; who finds it busy has one of its own, and waits for nobody."""
        special_texts = self._tokenizer.special_texts
        if not self._rendering.acquire(timeout=_RENDERING_SECONDS):
            return render_apart(template, special_texts, [chat])
        try:
            if self._process is None:
                self._process = TemplateProcess(template, special_texts)
            return self._process.render([chat])
        finally:
            self._rendering.release()


@dataclass(frozen=True)
class _Skeleton:
    """A conversation as a template is given it, with marks for all that the request says."""

    marks: Marks
    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Any, ...]


def _skeleton(conversation: Conversation, marks: Marks) -> _Skeleton:
    tools = tuple(marks.of_value(tool) for tool in conversation.tools)
    num_documents = 0
    messages = []
    for number, turn in enumerate(conversation.turns, 1):
        content = ""
        for part in turn.parts:
            if isinstance(part, DocumentPart):
                content += marks.of(Slot("document", str(num_documents), number, turn.role, False))
                num_documents += 1
            else:
                content += marks.of(Slot("text", part, number, turn.role, bool(turn.tool_calls)))
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.name is not None:
            message["name"] = marks.of(Slot("word", turn.name, number))
        if turn.reasoning is not None:
            message["reasoning_content"] = marks.of(Slot("text", turn.reasoning, number, "thought"))
        if turn.tool_calls:
            message["tool_calls"] = [_call(call, marks, number) for call in turn.tool_calls]
        if turn.tool_call_id is not None:
            message["tool_call_id"] = marks.of_id(Slot("word", turn.tool_call_id, number))
        messages.append(message)
    return _Skeleton(marks, tuple(messages), tools)


def _call(call: Mapping[str, Any], marks: Marks, number: int) -> dict[str, Any]:
    others = {name: value for name, value in call.items() if name != "id"}
    made: dict[str, Any] = marks.of_value(others, number)
    if "id" in call:
        made["id"] = marks.of_id(Slot("word", call["id"], number))
    return made


def _check_written(pieces: Sequence[Piece], slots: Sequence[Slot]) -> None:
    """InvalidRequest if a template leaves a text out, or has documents otherwise than in order."""
    numbers = {piece[0] for piece in pieces if not isinstance(piece, str)}
    for number, slot in enumerate(slots):
        if number not in numbers and not slot.may_be_left_out:
            raise InvalidRequest(
                f"the chat template does not write what message {slot.message} (role {slot.role}) "
                "says: this model takes no such message there"
            )
    written = documents_in(pieces, slots)
    if written != list(range(len(written))):
        raise InvalidRequest(
            "the chat template does not write the messages' documents once each and in order"
        )


class _Parts:
    """A prompt as it grows from a template's pieces, and its digest up to here."""

    def __init__(
        self, tokenizer: Tokenizer, document_ids: Sequence[str], answer_ids: AnswerIds
    ) -> None:
        self._tokenizer = tokenizer
        self._document_ids = document_ids
        self._answer_ids = answer_ids
        self._head: list[int] = []
        self._fresh: list[int] = []
        self._rest: list[tuple[int, ...] | int] = []
        self._in_head, self._is_own = True, False
        self._digest = hashlib.sha256()

    @property
    def _is_first(self) -> bool:
        return not (self._head or self._fresh or self._rest)

    def add_template(self, text: str) -> None:
        self._extend(self._tokenizer.encode_template(text, first=self._is_first))

    def add(self, slot: Slot, json_depth: int) -> None:
        """What a mark stood for, which has been so often inside JSON."""
        self._in_head = self._in_head and (slot.kind == "word" or slot.role in _TOLD)
        if slot.kind == "document":
            self._add_document(int(slot.text))
            return
        self._is_own = self._is_own or self._in_head
        ids = None
        if slot.role == "assistant":
            ids = self._answer_ids(self._digest.hexdigest(), slot.text)
        if ids is None:
            text = as_written(slot.text, json_depth)
            ids = self._tokenizer.encode(text, first=self._is_first)
        self._extend(ids)

    def prompt(self) -> ConversationPrompt:
        rest = (*self._rest, tuple(self._fresh))
        return ConversationPrompt(tuple(self._head), rest, self._is_own, self._digest.hexdigest())

    def _add_document(self, number: int) -> None:
        if self._fresh:
            self._rest.append(tuple(self._fresh))
            self._fresh = []
        self._rest.append(number)
        # No token has a negative id.
        self._digest.update(b"\xff\xff\xff\xff" + self._document_ids[number].encode())

    def _extend(self, ids: Sequence[int]) -> None:
        (self._head if self._in_head else self._fresh).extend(ids)
        self._digest.update(array("i", ids).tobytes())
