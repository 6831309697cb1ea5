"""Marks that stand in a template for a request's texts and documents, and that nobody can guess.

What a template writes around them is the model's own; a mark's text is put in afterwards, so no
text is ever rendered, and none is read for control tokens.
"""

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from markupsafe import escape

Kind = Literal["text", "word", "document"]
Piece = str | tuple[int, int]
"""What a template wrote itself, or (a slot's number, how often its text is inside JSON there, or
IN_HTML)."""
IN_HTML = -1
"""A text beside what a template calls safe is escaped, as all that Jinja joins to such."""

_MIN_ID_LEN = 9
_DEPTH = 3
"""So many letters of ids are looked at one by one: of 32,768 ids one goes on from there."""
# What templates look for in a tool's definition. All other words of it are the request's own.
_SCHEMA_WORDS = frozenset(
    (
        *("type", "function", "name", "description", "parameters", "properties", "required"),
        *("items", "enum", "string", "number", "integer", "boolean", "object", "array", "null"),
        *("additionalProperties", "anyOf", "oneOf", "allOf", "default", "title", "format"),
        *("minimum", "maximum", "strict", "arguments", "const", "$ref", "$defs", "return"),
    )
)


@dataclass(frozen=True)
class Slot:
    """What a mark stands for. `message` is whose it is, from 1; 0: a tool's definition.

    A "text" is what a message says, a "word" is inside JSON or a name, and the text of a
    "document" is its number among the documents, from 0.
    """

    kind: Kind
    text: str
    message: int = 0
    role: str = ""
    may_be_left_out: bool = True


@dataclass
class Marks:
    """Marks made of one `stem`, and what each stands for."""

    stem: str
    slots: list[Slot] = field(default_factory=list)
    _ids: dict[str, str] = field(default_factory=dict)

    def of(self, slot: Slot) -> str:
        """A mark for this slot. Its quote tells whether it was written inside JSON."""
        self.slots.append(slot)
        return f'{self.stem}"{len(self.slots) - 1}.'

    def of_id(self, slot: Slot) -> str:
        """A mark for an id, as long as it unless it is very short: templates count its letters."""
        if slot.text not in self._ids:
            self.slots.append(slot)
            digest = hashlib.shake_256(f"{self.stem} {len(self.slots)}".encode()).digest(64)
            letters = base64.b32encode(digest).decode().lower().rstrip("=")
            self._ids[slot.text] = letters[: max(_MIN_ID_LEN, len(slot.text))]
        return self._ids[slot.text]

    def of_value(self, value: Any, message: int = 0) -> Any:
        """A JSON value with marks for its texts and names, but for those that templates know."""
        if isinstance(value, str):
            return value if value in _SCHEMA_WORDS else self.of(Slot("word", value, message))
        if isinstance(value, list):
            return [self.of_value(item, message) for item in value]
        if isinstance(value, dict):
            return {
                self.of_value(name, message): self.of_value(item, message)
                for name, item in value.items()
            }
        return value

    def split(self, rendered: str) -> Iterator[Piece]:
        """What a template wrote, with the slots in it."""
        numbers = {slot.text: number for number, slot in enumerate(self.slots)}
        by_id = {mark: numbers[text] for text, mark in self._ids.items()}
        end = 0
        for match in self._pattern.finditer(rendered):
            if match.start() > end:
                yield rendered[end : match.start()]
            end = match.end()
            if match["number"] is None:
                yield by_id[match[0]], 0
            else:
                # One level of JSON writes a quote with one backslash, two with three.
                depth = len(match["slashes"]).bit_length()
                yield int(match["number"]), depth if match["quote"] == '"' else IN_HTML
        if rendered[end:]:
            yield rendered[end:]

    @property
    def _pattern(self) -> re.Pattern[str]:
        texts = rf'{re.escape(self.stem)}(?P<slashes>\\*)(?P<quote>"|&#34;)(?P<number>\d+)\.'
        return re.compile(f"{texts}|{_any_of(self._ids.values())}" if self._ids else texts)


def _any_of(words: Iterable[str], depth: int = _DEPTH) -> str:
    """A pattern of words that are longer than `depth`, those that begin alike together."""
    if not depth:
        return "|".join(words)
    rests: dict[str, list[str]] = {}
    for word in words:
        rests.setdefault(word[0], []).append(word[1:])
    return "|".join(f"{first}(?:{_any_of(ends, depth - 1)})" for first, ends in rests.items())


def as_written(text: str, depth: int) -> str:
    """A text as it stands in a JSON text, in one inside that, and so on; or IN_HTML."""
    if depth == IN_HTML:
        return str(escape(text))
    for _ in range(depth):
        text = json.dumps(text, ensure_ascii=False)[1:-1]
    return text


def documents_in(pieces: Sequence[Piece], slots: Sequence[Slot]) -> list[int]:
    """The documents' numbers in the order in which a template wrote them."""
    numbers = [piece[0] for piece in pieces if not isinstance(piece, str)]
    return [int(slots[number].text) for number in numbers if slots[number].kind == "document"]
