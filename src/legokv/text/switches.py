"""Variables of a chat template that a request or a server sets, as enable_thinking."""

import json
import unicodedata
from collections.abc import Iterator, Mapping
from typing import Any

from legokv.errors import InvalidRequest, kind_of

Switches = Mapping[str, Any]

MAX_SWITCHES_BYTES = 4096
MAX_SWITCHES = 16
MAX_SWITCH_DEPTH = 4
_MARKS_OF_TEXT = frozenset(" .,:;!?'\"()+-_/%&@#*=~")


def parse_switches(text: str, where: str) -> Switches:
    """The switches in a JSON object; InvalidRequest, naming `where`, for what is none.

    A request's or a setting's words reach the model as the template's own. So texts among them are
    of letters, digits, blanks and plain marks: of nothing that control tokens are spelled with.
    """
    num_bytes = len(text.encode())
    if num_bytes > MAX_SWITCHES_BYTES:
        raise InvalidRequest(
            f"{where} has {num_bytes} bytes, at most {MAX_SWITCHES_BYTES} are taken"
        )
    try:
        switches = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"{where} is not JSON: {str(error)[:200]}") from None
    if not isinstance(switches, dict):
        raise InvalidRequest(f"{where} is a JSON object, not {kind_of(switches)}")
    if len(switches) > MAX_SWITCHES:
        raise InvalidRequest(
            f"{where} has {len(switches)} members, at most {MAX_SWITCHES} are taken"
        )
    _check_value(switches, where, MAX_SWITCH_DEPTH)
    return switches


def texts_in(value: Any) -> Iterator[str]:
    """Every text in the switches, names too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from texts_in(item)


def _check_value(value: Any, where: str, depth: int) -> None:
    if isinstance(value, dict | list):
        if not depth:
            raise InvalidRequest(f"{where} is nested deeper than {MAX_SWITCH_DEPTH}")
        for item in (*value, *value.values()) if isinstance(value, dict) else value:
            _check_value(item, where, depth - 1)
    elif isinstance(value, float) and value - value != 0:
        raise InvalidRequest(f"{where} holds a number that is none: {value}")
    elif isinstance(value, str) and not all(map(_is_plain, value)):
        wrong = next(character for character in value if not _is_plain(character))
        raise InvalidRequest(
            f"{where} holds the character {wrong!r}: texts in it are of letters, digits, blanks "
            f"and {''.join(sorted(_MARKS_OF_TEXT)).strip()}"
        )


def _is_plain(character: str) -> bool:
    return character in _MARKS_OF_TEXT or unicodedata.category(character)[0] in "LMN"
