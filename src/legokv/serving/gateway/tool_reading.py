"""Reads an answer as it comes: its text, the tool calls in it, and their arguments in pieces."""

import json
import re
import secrets
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeVar

from legokv.serving.gateway.incoming import JSON_BLANKS, Incoming, Wait, is_object
from legokv.serving.gateway.models import json_text


class ToolForm(Enum):
    """How a family of models writes calls."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"


@dataclass(frozen=True)
class ToolCall:
    """A call begins."""

    name: str
    id: str

    @classmethod
    def new(cls, name: str) -> "ToolCall":
        """With an id of its own, of the nine letters and digits that Mistral's templates want."""
        return cls(name, secrets.token_hex(5)[:9])


@dataclass(frozen=True)
class Arguments:
    """JSON text: the next piece of the arguments of the call that began last."""

    text: str


Item = str | ToolCall | Arguments
_T = TypeVar("_T")
Run = Generator[Item | None, None, _T]
"""Reads on; None: what has come is not enough."""

TOOL_CALL, _TOOL_CALL_END = "<tool_call>", "</tool_call>"
MISTRAL_CALLS = "[TOOL_CALLS]"
PYTHON_TAG = "<|python_tag|>"
_CALL_ID, _ARGS = "[CALL_ID]", "[ARGS]"
_FUNCTION, _FUNCTION_END = "<function=", "</function>"
_PARAMETER, _PARAMETER_END = "<parameter=", "</parameter>"
_ARGUMENT_KEYS = ("arguments", "parameters")
_BLANKS, _BETWEEN = re.compile(r"\s*"), re.compile(r"[\s;,\[\]]*")
_IN_TAG, _WORD = re.compile(r"[^<>\n]*"), re.compile(r"\w*")


@dataclass
class _CallInJson:
    """What of a call in JSON is known; `arguments` are those that come whole."""

    name: str | None = None
    arguments: str | None = None
    has_begun: bool = False


class ToolReader:
    """Splits one answer into text and calls, piece by piece.

    A call begins when its name is known, a tool's that was offered, and its arguments have begun;
    until then what may be one is held back, and what turns out to be none is text. From then on it
    is a call: its arguments are what the model writes, as far as that is JSON, and what follows is
    text. Arguments that break off, as the answer does, or with what no JSON has, are given so far.
    How an answer is cut into pieces changes nothing.

    Arguments come whole where only their end says what they are: those before the call's name,
    those that are a text with JSON in it, and in tags a parameter that may be JSON or not.
    """

    def __init__(
        self, form: ToolForm, names: Sequence[str], texts: Collection[tuple[str, str]] = ()
    ) -> None:
        """`texts` are the parameters that are texts, each with its tool's name before it."""
        self._names = tuple(filter(None, names))
        self._texts = texts
        self._source = Incoming()
        self._num_calls = 0
        runs = {
            ToolForm.HERMES: self._hermes,
            ToolForm.LLAMA3: self._llama3,
            ToolForm.MISTRAL: self._mistral,
        }
        self._run = runs[form]()

    @property
    def num_held(self) -> int:
        """Characters that the next piece is read together with."""
        return self._source.num_unread

    def push(self, text: str) -> list[Item]:
        """Text, calls and pieces of arguments that are certain with this piece."""
        self._source.add(text)
        return list(self._until_more_is_wanted())

    def end(self) -> list[Item]:
        """What is left when the answer is over."""
        self._source.is_over = True
        return list(self._until_more_is_wanted())

    def _until_more_is_wanted(self) -> Iterator[Item]:
        for item in self._run:
            if item is None:
                return
            yield item

    def _hermes(self) -> Run[None]:
        source = self._source
        while (yield from self._text_before(TOOL_CALL)):
            source.keep(TOOL_CALL)
            yield from source.skip(_BLANKS)
            in_tags = (yield from source.next()) == "<"
            is_call = yield from (self._tagged_call() if in_tags else self._json_call())
            if is_call:
                yield from source.skip(_BLANKS)
                yield from source.word(_TOOL_CALL_END)
            else:
                yield from _said(source.let_go())

    def _llama3(self) -> Run[None]:
        source = self._source
        source.keep()
        yield from source.skip(_BLANKS)
        if (yield from source.word(PYTHON_TAG)):
            yield from source.skip(_BETWEEN)
        while (yield from self._json_call()):
            source.keep()
            yield from source.skip(_BETWEEN)
        yield from self._rest()

    def _mistral(self) -> Run[None]:
        source = self._source
        is_call = True
        while is_call:
            source.keep()
            yield from source.skip(_BETWEEN)
            # What stands between calls has the mark's first letter.
            yield from source.word(MISTRAL_CALLS.removeprefix("["))
            yield from source.skip(_BETWEEN)
            is_call = yield from self._mistral_call()
        yield from self._rest()

    def _mistral_call(self) -> Run[bool]:
        source = self._source
        name = yield from source.word(*self._names)
        if not name:
            return (yield from self._json_call())
        if (yield from source.word(_CALL_ID)):
            yield from source.skip(_WORD)
        yield from source.word(_ARGS)
        yield from source.skip(_BLANKS)
        opening = [(yield from source.word("{"))]
        yield from source.skip(JSON_BLANKS, opening)
        # A brace alone stands in prose and formulas, too.
        if not opening[0] or (yield from source.next()) not in ('"', "}"):
            return False
        yield from self._begin(name)
        source.put_back("".join(opening))
        yield from self._arguments()
        return True

    def _text_before(self, mark: str) -> Run[bool]:
        """Text up to the mark, which is read, too; False if the answer ends without it."""
        source, blanks = self._source, [""]
        while True:
            start = source.text.find(mark, source.place)
            num = source.num_unread - source.overlap(mark) if start < 0 else start - source.place
            part = source.read(num)
            certain = part.rstrip()
            if certain:
                yield from _said("".join([*blanks, certain]))
                blanks = [""]
            if start >= 0:
                # Blanks before a call are the template's, not the answer's.
                source.read(len(mark))
                return True
            blanks.append(part[len(certain) :])
            if source.is_over:
                break
            yield None
        rest = "".join(blanks) + source.read(source.num_unread)
        yield from _said(rest if rest.strip() or not self._num_calls else "")
        return False

    def _rest(self) -> Run[None]:
        """What is no call, to the end; nothing if only what stands between calls is left."""
        source = self._source
        kept = source.let_go()
        at_end = not (yield from source.next())
        if not (at_end and self._num_calls and _BETWEEN.fullmatch(kept)):
            yield from _said(kept + source.read(source.num_unread))
        while not source.is_over:
            yield None
            yield from _said(source.read(source.num_unread))

    def _begin(self, name: str) -> Run[None]:
        self._source.let_go()
        self._num_calls += 1
        yield ToolCall.new(name)

    def _json_call(self) -> Run[bool]:
        """An object with a name and arguments, and perhaps others; False if it is no call."""
        source, call, word = self._source, _CallInJson(), "{"
        while (yield from source.word(word)):
            yield from source.skip(JSON_BLANKS)
            key = yield from source.text_value()
            yield from source.skip(JSON_BLANKS)
            if key is None or not (yield from source.word(":")):
                return call.has_begun
            yield from source.skip(JSON_BLANKS)
            if not (yield from self._member(key, call)):
                return call.has_begun
            yield from source.skip(JSON_BLANKS)
            word = ","
        if call.has_begun:
            yield from source.word("}")
        return call.has_begun

    def _member(self, key: str, call: _CallInJson) -> Run[bool]:
        """A member's value; False if the object is no call with it, or breaks off."""
        if key == "name" and call.name is None:
            call.name = yield from self._source.text_value()
            is_read = call.name in self._names
        elif key in _ARGUMENT_KEYS and call.arguments is None and not call.has_begun:
            first = yield from self._source.next()
            if first == "{" and call.name is not None:
                call.has_begun = True
                yield from self._begin(call.name)
                return (yield from self._arguments())
            is_read = yield from self._whole_arguments(first, call)
        else:
            return (yield from self._source.value([]))
        if is_read and call.name is not None and call.arguments is not None:
            call.has_begun = True
            yield from self._begin(call.name)
            yield Arguments(call.arguments)
            call.arguments = None
        return is_read

    def _whole_arguments(self, first: str, call: _CallInJson) -> Run[bool]:
        if first == '"':
            text = yield from self._source.text_value()
            call.arguments = text if text is not None and is_object(text) else None
            return call.arguments is not None
        raw: list[str] = []
        is_read = first == "{" and (yield from self._source.value(raw))
        call.arguments = "".join(raw) if is_read else None
        return is_read

    def _arguments(self) -> Run[bool]:
        """A JSON value as it comes; False if it breaks off."""
        raw: list[str] = []
        return (yield from _shown(self._source.value(raw), raw, str))

    def _tagged_call(self) -> Run[bool]:
        """A call in tags, as Qwen3-Coder writes it: a parameter that is no text is JSON."""
        name = yield from self._tag(_FUNCTION)
        return name in self._names and (yield from self._tagged_arguments(name))

    def _tagged_arguments(self, name: str) -> Run[bool]:
        """The parameters and the end of a call; False if it is no call."""
        num_shown = 0
        while True:
            yield from self._source.skip(_BLANKS)
            key = yield from self._tag(_PARAMETER)
            if not key:
                break
            value = None
            if (name, key) not in self._texts:
                value = yield from self._parameter_value()
                if value is None:
                    return bool(num_shown)
            if not num_shown:
                yield from self._begin(name)
            num_shown += 1
            yield Arguments(f"{',' if num_shown > 1 else '{'}{json_text(key)}:")
            if value is not None:
                yield Arguments(json_text(_value_of(value)))
            elif not (yield from self._parameter_text()):
                return True
        if not (yield from self._is_end_of_tags()):
            return bool(num_shown)
        if not num_shown:
            yield from self._begin(name)
        yield Arguments("}" if num_shown else "{}")
        return True

    def _is_end_of_tags(self) -> Run[bool]:
        source = self._source
        if (yield from source.word(_FUNCTION_END)):
            return True
        yield from source.await_word((_TOOL_CALL_END,))
        return source.text.startswith(_TOOL_CALL_END, source.place)

    def _tag(self, begin: str) -> Run[str]:
        """The name in `<function=name>`; "" if there is none."""
        if not (yield from self._source.word(begin)):
            return ""
        parts: list[str] = []
        yield from self._source.skip(_IN_TAG, parts)
        is_whole = yield from self._source.word(">")
        return "".join(parts).strip() if is_whole else ""

    def _parameter_value(self) -> Run[str | None]:
        """The text of a parameter; None if the answer ends in it."""
        parts: list[str] = []
        is_whole = yield from self._parameter(parts)
        return "".join(parts) if is_whole else None

    def _parameter_text(self) -> Run[bool]:
        """The text of a parameter as JSON, as it comes; False if the answer ends in it."""
        yield Arguments('"')
        parts: list[str] = []
        is_whole = yield from _shown(self._parameter(parts), parts, _inside_quotes)
        if is_whole:
            yield Arguments('"')
        return is_whole

    def _parameter(self, parts: list[str]) -> Wait[bool]:
        """Into `parts` all up to the end of a parameter, without a line's end on either side."""
        source = self._source
        yield from source.word("\n")
        while True:
            start = source.text.find(_PARAMETER_END, source.place)
            if start >= 0:
                parts.append(source.read(start - source.place).removesuffix("\n"))
                source.read(len(_PARAMETER_END))
                return True
            held = max(map(source.overlap, _ENDS_OF_PARAMETERS))
            parts.append(source.read(source.num_unread - held))
            if source.is_over:
                return False
            yield


_ENDS_OF_PARAMETERS = (f"\n{_PARAMETER_END}", _PARAMETER_END)


def _shown(reading: Wait[bool], parts: list[str], spell: Callable[[str], str]) -> Run[bool]:
    """What the reading puts into `parts`, as it comes."""
    is_whole = None
    while is_whole is None:
        try:
            next(reading)
        except StopIteration as ended:
            is_whole = bool(ended.value)
        text = "".join(map(spell, parts))
        parts.clear()
        if text:
            yield Arguments(text)
        if is_whole is None:
            yield None
    return is_whole


def _inside_quotes(text: str) -> str:
    return json_text(text)[1:-1]


def _said(text: str) -> Iterator[str]:
    if text:
        yield text


def _value_of(text: str) -> Any:
    """What the text is as JSON; the text itself if it is none, or says what no JSON may."""
    try:
        value = json.loads(text)
        json_text(value).encode()
    except (ValueError, RecursionError):
        return text
    return value
