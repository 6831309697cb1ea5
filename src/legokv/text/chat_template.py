"""A model's chat template: Jinja from a checkpoint, run in a sandbox that changes nothing.

Parsing it here runs nothing of it; compiling and rendering do. A template nobody has tried is
rendered by `template_process`, which may take only so much time and memory.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, time
from functools import cached_property, partial
from typing import Any, NoReturn

import jinja2
from jinja2 import meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from legokv.errors import InvalidRequest, LegokvError, UnsupportedModel
from legokv.text.switches import Switches

Message = Mapping[str, Any]

MAX_SOURCE_CHARACTERS = 1 << 20
MAX_TEXT_CHARACTERS = 1 << 18
_OWN_NAMES = (
    *("messages", "add_generation_prompt", "tools", "documents"),
    *("bos_token", "eos_token", "unk_token", "pad_token"),
)
_CLOCK = "strftime_now"
_MAX_REASON_CHARACTERS = 300


@dataclass(frozen=True)
class Chat:
    """What a template fills in: messages, tools, switches, and the day that its clock shows.

    The clock stands at the start of the day: a head that told the second would be compiled anew
    for every request.
    """

    messages: tuple[Message, ...]
    generation_prompt: bool = True
    switches: Switches = field(default_factory=dict)
    day: date = field(default_factory=date.today)
    tools: Sequence[Any] | None = None


class ChatTemplate:
    """A template; UnsupportedModel if it is too long or not valid Jinja."""

    def __init__(self, source: str) -> None:
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise UnsupportedModel(
                f"the chat template has {len(source)} characters, at most {MAX_SOURCE_CHARACTERS} "
                "are taken"
            )
        self.source = source
        self._environment = _environment()
        try:
            self._tree = self._environment.parse(source)
        except jinja2.TemplateSyntaxError as error:
            raise _not_jinja(error) from None
        except RecursionError:
            raise UnsupportedModel("the chat template is nested too deep") from None

    @cached_property
    def _compiled(self) -> jinja2.Template:
        return self._environment.from_string(self.source)

    @cached_property
    def is_dated(self) -> bool:
        """Whether it asks for the time."""
        return any(name.name == _CLOCK for name in self._tree.find_all(nodes.Name))

    def switch_names(self) -> frozenset[str]:
        """The variables it reads and does not always set itself. This evaluates constants of it."""
        names = meta.find_undeclared_variables(self._tree)
        return frozenset(names) - {*_OWN_NAMES, *self._environment.globals}

    def render(self, chat: Chat, special_tokens: Mapping[str, str]) -> str:
        """The text of a chat; InvalidRequest in the template's words if it refuses the messages.

        UnsupportedModel if it fails by itself, or writes more than MAX_TEXT_CHARACTERS.
        """
        try:
            return _bounded(self._compiled, _variables(chat, special_tokens))
        except jinja2.TemplateSyntaxError as error:
            raise _not_jinja(error) from None
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"the chat template refuses the messages: {_one_line(error)}"
            ) from None
        except LegokvError:
            raise
        except Exception as error:  # noqa: BLE001 - a program of others' may do anything wrong
            kind = type(error).__name__
            raise UnsupportedModel(f"the chat template fails: {kind}: {_one_line(error)}") from None


def _variables(chat: Chat, special_tokens: Mapping[str, str]) -> dict[str, Any]:
    midnight = datetime.combine(chat.day, time())
    return {
        **chat.switches,
        **special_tokens,
        "messages": list(chat.messages),
        "add_generation_prompt": chat.generation_prompt,
        "tools": None if chat.tools is None else list(chat.tools),
        "documents": None,
        _CLOCK: partial(_time, midnight),
    }


def _bounded(template: jinja2.Template, variables: dict[str, Any]) -> str:
    pieces, num_characters = [], 0
    for piece in template.generate(variables):
        pieces.append(piece)
        num_characters += len(piece)
        if num_characters > MAX_TEXT_CHARACTERS:
            raise UnsupportedModel(
                f"the chat template writes more than {MAX_TEXT_CHARACTERS} characters about "
                "a short chat"
            )
    text = "".join(pieces)
    text.encode()  # half a surrogate pair is no text
    return text


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:_MAX_REASON_CHARACTERS]


def _not_jinja(error: jinja2.TemplateSyntaxError) -> UnsupportedModel:
    return UnsupportedModel(
        f"the chat template is not valid Jinja, line {error.lineno}: {_one_line(error)}"
    )


class _GenerationBlock(Extension):
    """`{% generation %}…{% endgeneration %}` marks an answer for training; here it is its body."""

    tags = {"generation"}  # noqa: RUF012 - the base class declares it as an instance variable

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    # Here for `is defined`; a chat brings its own day.
    environment.globals[_CLOCK] = partial(_time, datetime.min)
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which models have not seen. The options are those that
    # transformers' filter takes, in its order; names of a request's own are sorted as marks.
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _time(now: datetime, pattern: str) -> str:
    return now.strftime(pattern)
