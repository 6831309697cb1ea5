"""What a chat says about tools, and how its model writes calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from legokv.errors import ApiRefused
from legokv.serving.gateway.tool_reading import (
    MISTRAL_CALLS,
    PYTHON_TAG,
    TOOL_CALL,
    ToolForm,
    ToolReader,
)

_NOT_HERMES = ("<arg_key>", "<invoke")


def tool_form_of(template: str | None) -> ToolForm | None:
    """The family of a chat template; None if it has no place for tools that is known here."""
    if template is None or "tools" not in template:
        return None
    if TOOL_CALL in template:
        # Other families write calls in these tags in ways of their own.
        return None if any(mark in template for mark in _NOT_HERMES) else ToolForm.HERMES
    if MISTRAL_CALLS in template or "[AVAILABLE_TOOLS]" in template:
        return ToolForm.MISTRAL
    if PYTHON_TAG in template or "ipython" in template:
        return ToolForm.LLAMA3
    return None


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
