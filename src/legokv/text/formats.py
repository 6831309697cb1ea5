"""A model's prompt formats: by the template's switches, and by the day where it tells the date."""

import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

from legokv.errors import InvalidRequest, LegokvError, UnsupportedModel
from legokv.text.chat_template import Chat, Message
from legokv.text.prompt import ALONE, TOLD, Frame, PromptFormat, prompt_format
from legokv.text.switches import Switches, texts_in
from legokv.text.template_process import render_apart
from legokv.text.tokenizer import Tokenizer

_MAX_KEPT = 64

_TRIED_DOCUMENT = (
    'The harbour\'s "oldest" light is <b>grey</b>, {{ 7 * 7 }} m high & lit 100 % of nights.\n'
    "\tIt stands in 東京 \\ Vellin.\n\n"
)
_TRIED_QUESTION, _TRIED_SYSTEM = "Who keeps it?", "Answer briefly:\n\n- in one line"


class PromptFormats:
    """The formats of one model, each rendered once a day at most. Safe to use from many threads."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        switches: Switches | None = None,
        today: Callable[[], date] = date.today,
    ) -> None:
        """`switches` are those of every chat that does not set them itself."""
        self._tokenizer = tokenizer
        self._switches = dict(switches or {})
        self._today = today
        self._kept: OrderedDict[tuple[date | None, str], PromptFormat] = OrderedDict()
        # One lock for the usual format: it does not wait until others' switches are rendered.
        self._locks = {True: threading.Lock(), False: threading.Lock()}

    def of(self, switches: Mapping[str, Any]) -> PromptFormat:
        """The format with these switches beside the usual ones, today.

        InvalidRequest for one the template does not know, or which it fails with.
        """
        chosen = {**self._switches, **switches}
        template = self._tokenizer.chat_template
        day = self._today() if template is not None and template.is_dated else None
        key = (day, json.dumps(chosen, sort_keys=True))
        form = self._kept.get(key)
        if form is not None:
            return form
        with self._locks[not switches]:
            form = self._kept.get(key)
            if form is None:
                form = self._rendered(chosen, day or date.min, by_request=bool(switches))
                self._keep(key, form)
            return form

    def check(self) -> None:
        """Try the template with a document, a system text and several turns.

        UnsupportedModel if it fails at any, or changes what they say.
        """
        if self._tokenizer.chat_template is None:
            self.of({})
            return
        asked = {"role": "user", "content": _TRIED_DOCUMENT + _TRIED_QUESTION}
        system = {"role": "system", "content": _TRIED_SYSTEM}
        turns = (asked, {"role": "assistant", "content": "Orrin."}, asked)
        chats = (ALONE, TOLD, (asked,), (system, asked), turns, (system, *turns))
        *marks, alone, with_system, turns_alone, turns_told = self._render(
            chats, self._switches, self._today()
        )
        form = self._format(*marks)
        if alone != _joined(form.without_system):
            raise _changed("the user's message")
        # Without a system role of the template's, the system text stands in the user's message.
        has_role = isinstance(with_system, str) and _TRIED_SYSTEM.partition("\n")[0] in with_system
        if has_role and with_system != _joined(form.with_system):
            raise _changed("the system text")
        for rendering in (with_system, turns_alone, turns_told):
            if isinstance(rendering, UnsupportedModel):
                raise rendering

    def _render(
        self, chats: tuple[tuple[Mapping[str, str], ...], ...], switches: Switches, day: date
    ) -> list[str | LegokvError]:
        self._refuse_control_tokens(switches)
        template, special_tokens = self._tokenizer.chat_template, self._tokenizer.special_texts
        assert template is not None, "only a template renders"
        asked = [Chat(messages, switches=switches, day=day) for messages in chats]
        return render_apart(template, special_tokens, asked)

    def _rendered(self, switches: Switches, day: date, *, by_request: bool) -> PromptFormat:
        if self._tokenizer.chat_template is None:
            if switches:
                raise InvalidRequest(
                    f"this model has no chat template that reads {next(iter(switches))[:80]!r}"
                )
            return prompt_format(self._tokenizer)
        try:
            return self._format(*self._render((ALONE, TOLD), switches, day))
        except UnsupportedModel as error:
            # With the usual switches the template was tried.
            if by_request:
                raise InvalidRequest(str(error)) from None
            raise

    def _format(self, alone: str | LegokvError, with_system: str | LegokvError) -> PromptFormat:
        def render(chat: Sequence[Message]) -> str:
            return _text(alone if len(chat) == len(ALONE) else with_system)

        return prompt_format(self._tokenizer, render)

    def _refuse_control_tokens(self, switches: Switches) -> None:
        for text in texts_in(switches):
            token = self._tokenizer.added_token_in(text)
            if token is not None:
                raise InvalidRequest(f"a template's switch holds the control token {token[:80]!r}")

    def _keep(self, key: tuple[date | None, str], form: PromptFormat) -> None:
        self._kept[key] = form
        while len(self._kept) > _MAX_KEPT:
            # The usual one of today is the last that may go.
            usual = json.dumps(self._switches, sort_keys=True)
            oldest = next(k for k in list(self._kept) if k[1] != usual or k[0] != key[0])
            self._kept.pop(oldest, None)


def _text(rendering: str | LegokvError) -> str:
    if isinstance(rendering, LegokvError):
        raise rendering
    return rendering


def _joined(frame: Frame) -> str:
    head = _TRIED_SYSTEM.join(frame.head)
    question = _TRIED_DOCUMENT + frame.before_question + _TRIED_QUESTION
    return head + question + frame.after_question


def _changed(what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"the chat template changes what {what} says: a document could not stand in its place"
    )
