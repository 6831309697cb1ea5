"""From a question and documents to a prompt's segments, in the model's own chat format.

The template is rendered once, with marks in place of the request's texts, and split at the marks.
A request's texts are never rendered and never parsed for control tokens: nothing that a user or a
document says can end its own turn. Only a prompt's very first text gets the blank that some
tokenizers put before a text; documents, which may stand anywhere, never have it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.text.chat_template import Message
from legokv.text.tokenizer import Tokenizer

_SYSTEM, _DOCUMENTS, _QUESTION = "LEGOKV+SYSTEM+TEXT", "LEGOKV+DOCUMENTS", "LEGOKV+QUESTION"

# The chats by which a template's format is found: without a system text, and with one.
ALONE: tuple[Message, ...] = ({"role": "user", "content": _DOCUMENTS + _QUESTION},)
TOLD: tuple[Message, ...] = ({"role": "system", "content": _SYSTEM}, *ALONE)

# Models without a chat template get: system text, documents, "Question: …", "Answer:".
_PLAIN_BEFORE_QUESTION = "Question: "
_PLAIN_AFTER_QUESTION = "\nAnswer:"
_BLANK_LINE = "\n\n"


@dataclass(frozen=True)
class Frame:
    """The template's text around a request's: `head` stands before the documents.

    `head` is one text, or two with the request's system text between them.
    """

    head: tuple[str, ...]
    before_question: str
    after_question: str


@dataclass(frozen=True)
class PromptFormat:
    """One model's frames for requests without and with a system text of their own."""

    first_ids: tuple[int, ...]
    without_system: Frame
    with_system: Frame


@dataclass(frozen=True)
class Prompt:
    """Token ids of a prompt by segment: the head, the documents' chunks, and the fresh tail.

    The head is a chunk like the others: it comes first and is the same for every request with the
    same system text.
    """

    head_ids: tuple[int, ...]
    document_chunks: tuple[tuple[int, ...], ...]
    tail_ids: tuple[int, ...]

    @property
    def chunks(self) -> tuple[tuple[int, ...], ...]:
        """All that can be reused, in order: the head, unless it is empty, and the documents."""
        return ((self.head_ids,) if self.head_ids else ()) + self.document_chunks

    @property
    def num_tokens(self) -> int:
        """Tokens of the whole prompt."""
        return sum(map(len, self.chunks)) + len(self.tail_ids)


def prompt_format(
    tokenizer: Tokenizer, render: Callable[[Sequence[Message]], str] | None = None
) -> PromptFormat:
    """The format of the tokenizer's chat template, or the plain one where it has none.

    `render` gives the text of ALONE and of TOLD; the tokenizer does where it is not given.
    A template that takes no system message gets the system text at the start of the user's.
    UnsupportedModel if the template does not write the user's message once and whole.
    """
    if not tokenizer.has_chat_template:
        return _plain_format(tokenizer.first_ids)
    render = render or tokenizer.render_chat
    without = _frame(render(ALONE), (_DOCUMENTS, _QUESTION))
    try:
        rendered = render(TOLD)
    except InvalidRequest:
        rendered = ""
    if _SYSTEM in rendered:
        with_system = _frame(rendered, (_SYSTEM, _DOCUMENTS, _QUESTION))
    else:
        head = (without.head[0], _BLANK_LINE)
        with_system = Frame(head, without.before_question, without.after_question)
    return PromptFormat((), without, with_system)


def build_prompt(
    tokenizer: Tokenizer,
    form: PromptFormat,
    question: str,
    document_chunks: Sequence[Sequence[int]] = (),
    system: str | None = None,
) -> Prompt:
    """The prompt that asks `question` about documents, given as their chunks' token ids in order.

    Without `system` the template's own default stands. InvalidRequest for an empty question.
    """
    if not question.strip():
        raise InvalidRequest(f"the question is empty: {len(question)} characters, all blank")
    frame = form.without_system if system is None else form.with_system
    head = head_ids(tokenizer, form, system)
    is_first = not (len(head) > len(form.first_ids) or document_chunks)
    tail = tokenizer.encode_template(frame.before_question, first=is_first)
    tail += tokenizer.encode(question.strip(), first=is_first and not tail)
    tail += tokenizer.encode_template(frame.after_question)
    return Prompt(head, tuple(map(tuple, document_chunks)), tuple(tail))


def head_ids(
    tokenizer: Tokenizer, form: PromptFormat, system: str | None = None
) -> tuple[int, ...]:
    """What stands before the documents in every prompt with that system text."""
    frame = form.without_system if system is None else form.with_system
    head = tokenizer.encode_template(frame.head[0], first=True)
    if system is not None:
        head += tokenizer.encode(system.strip(), first=not head)
        head += tokenizer.encode_template(frame.head[1])
    return (*form.first_ids, *head)


def _plain_format(first_ids: tuple[int, ...]) -> PromptFormat:
    return PromptFormat(
        first_ids=first_ids,
        without_system=Frame(("",), _PLAIN_BEFORE_QUESTION, _PLAIN_AFTER_QUESTION),
        with_system=Frame(("", _BLANK_LINE), _PLAIN_BEFORE_QUESTION, _PLAIN_AFTER_QUESTION),
    )


def _frame(rendered: str, marks: tuple[str, ...]) -> Frame:
    parts = []
    for mark in marks:
        part, separator, rendered = rendered.partition(mark)
        if not separator or mark in rendered:
            raise UnsupportedModel(
                "the chat template does not write system text, documents and question once each "
                f"and in this order: {mark!r} is misplaced"
            )
        parts.append(part)
    *head, before_question = parts
    return Frame(tuple(head), before_question, rendered)
