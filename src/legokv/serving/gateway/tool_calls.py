"""Tool calls in what a model writes: by its chat template's family, also while it is streamed."""

import json
import re
import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from typing import Any

from legokv.errors import ApiRefused
from legokv.serving.gateway.models import json_text


class ToolForm(Enum):
    """How a family of models writes calls."""

    HERMES = "hermes"
    LLAMA3 = "llama3"
    MISTRAL = "mistral"


@dataclass(frozen=True)
class ToolCall:
    """One call; `arguments` is JSON text."""

    name: str
    arguments: str
    id: str

    @classmethod
    def new(cls, name: str, arguments: Any) -> "ToolCall":
        """With an id of its own, of the nine letters and digits that Mistral's templates want."""
        text = arguments if isinstance(arguments, str) else json_text(arguments)
        return cls(name, text, secrets.token_hex(5)[:9])


_HERMES = ("<tool_call>", "</tool_call>")
_MISTRAL = "[TOOL_CALLS]"
_NOT_HERMES = ("<arg_key>", "<invoke")
_CALL_ID, _ARGS = "[CALL_ID]", "[ARGS]"
_PYTHON = "<|python_tag|>"
# Heads alone: a pattern that looks for an end from every beginning takes the square of the time.
_FUNCTION, _FUNCTION_END = re.compile(r"<function=([^<>\n]+)>"), "</function>"
_PARAMETER, _PARAMETER_END = re.compile(r"\s*<parameter=([^<>\n]+)>"), "</parameter>"
_BETWEEN_VALUES, _BLANKS = re.compile(r"[; \n\t]*"), re.compile(r"\s*")


def tool_form_of(template: str | None) -> ToolForm | None:
    """The family of a chat template; None if it has no place for tools that is known here."""
    if template is None or "tools" not in template:
        return None
    if _HERMES[0] in template:
        # Other families write calls in these tags in ways of their own.
        return None if any(mark in template for mark in _NOT_HERMES) else ToolForm.HERMES
    if "[TOOL_CALLS]" in template or "[AVAILABLE_TOOLS]" in template:
        return ToolForm.MISTRAL
    if _PYTHON in template or "ipython" in template:
        return ToolForm.LLAMA3
    return None


class ToolReader:
    """Splits one answer into text and calls, piece by piece.

    What may be the beginning of a call is held back until it is known. What looks like a call and
    is none is text.
    """

    def __init__(
        self, form: ToolForm, names: Sequence[str], texts: Collection[tuple[str, str]] = ()
    ) -> None:
        """`texts` are the parameters that are texts, each with its tool's name before it."""
        self._form = form
        self._names = tuple(names)
        self._texts = texts
        self._held = ""
        self._said = False
        self.num_calls = 0

    def push(self, text: str) -> Iterator[str | ToolCall]:
        """Text and calls that are certain with this piece."""
        self._held += text
        if self._form is ToolForm.HERMES:
            yield from self._push_hermes()
        elif self._said or not self._may_be_call():
            yield from self._say(self._held)
            self._held = ""

    def end(self) -> Iterator[str | ToolCall]:
        """What is left when the answer is over."""
        held, self._held = self._held, ""
        if self._form is ToolForm.HERMES:
            yield from self._hermes_end(held)
            return
        calls = [] if self._said else self._whole(held)
        if calls:
            self.num_calls += len(calls)
            yield from calls
        else:
            yield from self._say(held)

    def _say(self, text: str) -> Iterator[str]:
        if text:
            self._said = True
            yield text

    def _push_hermes(self) -> Iterator[str | ToolCall]:
        (begin, end), held, place = _HERMES, self._held, 0
        while (start := held.find(begin, place)) >= 0:
            # Blanks before a call are the template's, not the answer's.
            yield from self._say(held[place:start].rstrip())
            inner = start + len(begin)
            stop = held.find(end, inner)
            if stop < 0:
                self._held = held[start:]
                return
            place = stop + len(end)
            yield self._call_or_text(held[inner:stop], held[start:place])
        certain = held[place : len(held) - _overlap(held[place:], begin)].rstrip()
        self._held = held[place + len(certain) :]
        yield from self._say(certain)

    def _hermes_end(self, held: str) -> Iterator[str | ToolCall]:
        before, mark, rest = held.partition(_HERMES[0])
        call = _call_of(rest, self._texts) if mark else None
        if call is not None:
            yield from self._say(before.rstrip())
            self.num_calls += 1
            yield call
        elif held.strip() or not self.num_calls:
            yield from self._say(held)

    def _call_or_text(self, inner: str, whole: str) -> "str | ToolCall":
        call = _call_of(inner, self._texts)
        if call is None:
            self._said = True
            return whole
        self.num_calls += 1
        return call

    def _may_be_call(self) -> bool:
        """Whether what is held may be a call, or become one."""
        held = self._held.lstrip()
        marks = (_MISTRAL, "[", "{") if self._form is ToolForm.MISTRAL else (_PYTHON, "{")
        if self._form is ToolForm.MISTRAL:
            ends = ("{", _ARGS, _CALL_ID)
            marks = (*marks, *(f"{name}{end}" for name in self._names for end in ends))
        return any(held.startswith(mark) or mark.startswith(held) for mark in marks)

    def _whole(self, held: str) -> list[ToolCall]:
        """The calls that an answer is, none if it is something else."""
        text = held.strip().removeprefix(_PYTHON).removeprefix(_MISTRAL).strip()
        if self._form is ToolForm.MISTRAL:
            named = _named_calls(text, self._names)
            if named:
                return named
        values = _json_values(text)
        calls = [_as_call(value) for value in values]
        good = [call for call in calls if call is not None]
        return good if len(good) == len(calls) else []


def _overlap(text: str, mark: str) -> int:
    """How many characters at the text's end may begin the mark."""
    return next(
        (n for n in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:n])), 0
    )


def _json_values(text: str) -> list[Any]:
    """The JSON values that a text consists of: one list's items, or objects between semicolons."""
    values, place = [], 0
    decoder = json.JSONDecoder()
    try:
        while place < len(text):
            value, place = decoder.raw_decode(text, place)
            values += value if isinstance(value, list) else [value]
            place = _end_of(_BETWEEN_VALUES, text, place)
    except (ValueError, RecursionError):
        return []
    return values


def _end_of(pattern: "re.Pattern[str]", text: str, place: int) -> int:
    """Where the pattern, which also takes nothing, ends that begins at the place."""
    match = pattern.match(text, place)
    return place if match is None else match.end()


def _as_call(value: Any) -> ToolCall | None:
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        return None
    arguments = value.get("arguments", value.get("parameters"))
    return _made(value["name"], arguments) if isinstance(arguments, str | Mapping) else None


def _made(name: str, arguments: Any) -> ToolCall | None:
    """The call; None if no JSON in UTF-8 can say it: NaN, 1e999, half a surrogate pair."""
    try:
        call = ToolCall.new(name, arguments)
        (call.name + call.arguments).encode()
    except (ValueError, RecursionError):
        return None
    return call


def _tagged_call(text: str, texts: Collection[tuple[str, str]]) -> ToolCall | None:
    """A call in tags, as Qwen3-Coder writes it: a parameter that is no text is JSON."""
    head = _FUNCTION.match(text)
    if head is None:
        return None
    *parts, rest = text[head.end() :].removesuffix(_FUNCTION_END).split(_PARAMETER_END)
    name, arguments = head[1].strip(), {}
    for part in parts:
        match = _PARAMETER.match(part)
        if match is None:
            return None
        key, plain = match[1].strip(), part[match.end() :].removeprefix("\n").removesuffix("\n")
        arguments[key] = plain if (name, key) in texts else _value_of(plain)
    return None if rest.strip() else _made(name, arguments)


def _value_of(text: str) -> Any:
    """What the text is as JSON; the text itself if it is none, or says what no JSON may."""
    try:
        value = json.loads(text)
        json_text(value).encode()
    except (ValueError, RecursionError):
        return text
    return value


def _call_of(text: str, texts: Collection[tuple[str, str]] = ()) -> ToolCall | None:
    if text.lstrip().startswith("<function="):
        return _tagged_call(text.strip(), texts)
    values = _json_values(text.strip())
    return _as_call(values[0]) if len(values) == 1 else None


def _named_calls(text: str, names: Sequence[str]) -> list[ToolCall]:
    """Calls one after another, each a tool's name before its arguments; none if there is else."""
    # The longest first: one name may begin another.
    ordered = "|".join(map(re.escape, sorted(names, key=len, reverse=True)))
    head = re.compile(
        rf"(?:{re.escape(_MISTRAL)})?\s*({ordered})"
        rf"(?:{re.escape(_CALL_ID)}\w*)?(?:{re.escape(_ARGS)})?\s*(?=\{{)"
    )
    decoder, calls, place = json.JSONDecoder(), [], 0
    try:
        while place < len(text):
            match = head.match(text, place)
            if match is None:
                return []
            value, place = decoder.raw_decode(text, match.end())
            call = _made(match[1], value)
            if call is None:
                return []
            calls.append(call)
            place = _end_of(_BLANKS, text, place)
    except (ValueError, RecursionError):
        return []
    return calls


@dataclass(frozen=True)
class Tools:
    """What a chat says about tools. `forced`: an answer is a call, as JSON of `response_format`."""

    tools: tuple[dict[str, Any], ...] = ()
    forced: bool = False
    names: tuple[str, ...] = ()
    several: bool = True

    def response_format(self) -> dict[str, Any]:
        """The schema of a forced call."""
        calls = [_call_schema(tool["function"]) for tool in self.tools if self._may_be(tool)]
        schema = calls[0] if len(calls) == 1 else {"anyOf": calls}
        return {"type": "json_schema", "json_schema": {"name": "tool_call", "schema": schema}}

    def _may_be(self, tool: dict[str, Any]) -> bool:
        return tool["function"]["name"] in self.names

    def reader(self, form: ToolForm) -> ToolReader:
        """A reader of one answer."""
        # A forced call is JSON alone, whatever the family writes around it.
        return ToolReader(ToolForm.LLAMA3 if self.forced else form, self.names, self._texts)

    @cached_property
    def _texts(self) -> frozenset[tuple[str, str]]:
        properties = {
            tool["function"]["name"]: (tool["function"].get("parameters") or {}).get("properties")
            for tool in self.tools
        }
        return frozenset(
            (name, key)
            for name, own in properties.items()
            if isinstance(own, Mapping)
            for key, schema in own.items()
            if isinstance(schema, Mapping) and schema.get("type") == "string"
        )


def _call_schema(function: Mapping[str, Any]) -> dict[str, Any]:
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, "arguments": parameters},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


CHOICES = ("none", "auto", "required")
"""What a `tool_choice` may say, or a function's name in an object."""


def tools_of(values: Mapping[str, Any], form: ToolForm | None) -> Tools:
    """The tools of a chat's fields; ApiRefused for what is wrong with them."""
    tools, choice = values.get("tools") or [], values.get("tool_choice")
    names = [_name_of(place, tool) for place, tool in enumerate(tools)]
    if choice is not None and not tools and choice != "none":
        raise ApiRefused("'tool_choice' needs 'tools'", param="tool_choice")
    if not tools or choice == "none":
        return Tools()
    if form is None:
        raise ApiRefused(
            "this model's chat template has no place for tools: leave 'tools' out", param="tools"
        )
    several = bool(values.get("parallel_tool_calls", True))
    if choice in (None, "auto"):
        return Tools(tuple(tools), False, tuple(names), several)
    if choice == "required":
        return Tools(tuple(tools), True, tuple(names), several)
    return Tools(tuple(tools), True, (_chosen(choice, names),), several)


def _chosen(choice: Any, names: Sequence[str]) -> str:
    function = choice.get("function") if isinstance(choice, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if name not in names:
        raise ApiRefused(
            f"'tool_choice' is {', '.join(CHOICES)}, or names one of the tools: "
            f"{', '.join(names)[:200]}",
            param="tool_choice",
        )
    return str(name)


def _name_of(place: int, tool: Any) -> str:
    function = tool.get("function") if isinstance(tool, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    is_schema = isinstance(function, Mapping) and isinstance(
        function.get("parameters", {}), Mapping | type(None)
    )
    if not isinstance(name, str) or not name or not is_schema or tool.get("type") != "function":
        raise ApiRefused(
            f"tools[{place}] is of type 'function', with a function's name and parameters",
            param=f"tools[{place}]",
        )
    return name
