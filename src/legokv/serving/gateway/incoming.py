"""A text that comes in pieces, and the JSON in it, read as far as it is certain. One pass: only a
word, an escape or a number is read again when more has come.

What reads is a generator: None says that what has come is not enough, its value what it found.
"""

import json
import math
import re
from collections.abc import Collection, Generator
from typing import Any, TypeVar

from legokv.serving.body_bounds import MAX_DEPTH
from legokv.serving.fields import MAX_DIGITS
from legokv.serving.gateway.models import json_text

_T = TypeVar("_T")
Wait = Generator[None, None, _T]

JSON_BLANKS = re.compile(r"[ \t\r\n]*")
_PLAIN = re.compile(r'[^"\\\x00-\x1f]*')
_PAIR = r"[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_ESCAPE = re.compile(rf'\\(?:["\\/bfnrt]|u(?:{_PAIR}|(?![dD][89a-fA-F])[0-9a-fA-F]{{4}}))')
_LONGEST_ESCAPE = 12
_SCALAR = re.compile(rf"[-+.\w]{{0,{MAX_DIGITS + 1}}}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CONSTANTS = ("true", "false", "null")
_BETWEEN_VALUES = re.compile(r"[\s,:]*")


class Incoming:
    """What has come and is not read yet.

    Readers of JSON put what they read into `raw` and say whether there is such a thing; what breaks
    it stays unread. A text must be one that UTF-8 can say, and a number finite.
    """

    def __init__(self) -> None:
        self.text = ""
        self.place = 0
        self.is_over = False
        """Whether nothing more comes."""
        self._kept: list[str] = []
        self._keeps = False

    def add(self, text: str) -> None:
        """One piece more."""
        self.text, self.place = self.text[self.place :] + text, 0

    @property
    def num_unread(self) -> int:
        """Characters that the next piece is read together with."""
        return len(self.text) - self.place

    def read(self, num: int) -> str:
        """So many characters, which have come."""
        part = self.text[self.place : self.place + num]
        self.place += num
        if self._keeps:
            self._kept.append(part)
        return part

    def put_back(self, text: str) -> None:
        """Have what was just read be read again."""
        self.text, self.place = text + self.text[self.place :], 0

    def keep(self, before: str = "") -> None:
        """Remember what is read from here on, behind a text that was read already."""
        self._kept, self._keeps = [before], True

    def let_go(self) -> str:
        """What was remembered; that is over."""
        kept, self._kept, self._keeps = "".join(self._kept), [], False
        return kept

    def next(self) -> Wait[str]:
        """The next character, unread; "" at the end."""
        while not self.num_unread and not self.is_over:
            yield
        return self.text[self.place : self.place + 1]

    def skip(self, pattern: "re.Pattern[str]", raw: list[str] | None = None) -> Wait[None]:
        """Reads all that the pattern has, which may be nothing."""
        while True:
            match = pattern.match(self.text, self.place)
            part = self.read(0 if match is None else match.end() - self.place)
            if raw is not None:
                raw.append(part)
            if self.is_over or self.num_unread:
                return
            yield

    def word(self, *words: str) -> Wait[str]:
        """Reads the longest of the words that stands here; "" if none does."""
        yield from self.await_word(words)
        here = [word for word in words if self.text.startswith(word, self.place)]
        return self.read(len(max(here, key=len))) if here else ""

    def await_word(self, words: Collection[str]) -> Wait[None]:
        """Until it is known which of the words stand here."""
        longest = max(map(len, words), default=0)
        while not self.is_over and self.num_unread < longest:
            rest = self.text[self.place :]
            if not any(len(word) > len(rest) and word.startswith(rest) for word in words):
                return
            yield

    def overlap(self, mark: str) -> int:
        """How many characters at the end of what has come may begin the mark."""
        longest = min(self.num_unread, len(mark) - 1)
        return next((n for n in range(longest, 0, -1) if self.text.endswith(mark[:n])), 0)

    def value(self, raw: list[str], depth: int = 0) -> Wait[bool]:
        """Any JSON value."""
        first = yield from self.next()
        if first in ("{", "["):
            return (yield from self._members(raw, depth))
        return (yield from (self._text(raw) if first == '"' else self._scalar(raw)))

    def text_value(self) -> Wait[str | None]:
        """What a JSON text says; None if there is none."""
        raw: list[str] = []
        is_text = yield from self._text(raw)
        return str(json.loads("".join(raw))) if is_text else None

    def _members(self, raw: list[str], depth: int) -> Wait[bool]:
        """An object or a list."""
        opening = self.read(1)
        raw.append(opening)
        end = "}" if opening == "{" else "]"
        if (yield from self._spaced(raw, end)):
            return True
        while depth < MAX_DEPTH:
            if opening == "{":
                is_key = (yield from self._text(raw)) and (yield from self._spaced(raw, ":"))
                if not is_key:
                    return False
                yield from self._spaced(raw)
            if not (yield from self.value(raw, depth + 1)):
                return False
            word = yield from self._spaced(raw, ",", end)
            if word != ",":
                return bool(word)
            yield from self._spaced(raw)
        return False

    def _spaced(self, raw: list[str], *words: str) -> Wait[str]:
        """One of the words behind blanks."""
        yield from self.skip(JSON_BLANKS, raw)
        word = yield from self.word(*words)
        raw.append(word)
        return word

    def _text(self, raw: list[str]) -> Wait[bool]:
        quote = yield from self.word('"')
        raw.append(quote)
        while quote:
            yield from self.skip(_PLAIN, raw)
            first = yield from self.next()
            if first == '"':
                raw.append(self.read(1))
                return True
            escape = (yield from self._escape()) if first == "\\" else ""
            if not escape:
                break
            raw.append(escape)
        return False

    def _escape(self) -> Wait[str]:
        while True:
            match = _ESCAPE.match(self.text, self.place)
            if match is not None:
                return self.read(match.end() - self.place)
            if self.is_over or self.num_unread >= _LONGEST_ESCAPE:
                return ""
            yield

    def _scalar(self, raw: list[str]) -> Wait[bool]:
        """A number, whose end the next character tells, or a constant."""
        while True:
            match = _SCALAR.match(self.text, self.place)
            word = "" if match is None else match[0]
            if len(word) < self.num_unread or self.is_over or len(word) > MAX_DIGITS:
                break
            yield
        is_number = len(word) <= MAX_DIGITS and _NUMBER.fullmatch(word) is not None
        if word in _CONSTANTS or (is_number and math.isfinite(float(word))):
            raw.append(self.read(len(word)))
            return True
        return False


def is_object(text: str) -> bool:
    """Whether the text is an object as JSON, and nothing else."""
    return _read_alone(text) == (True, True)


def is_begun_object(text: str) -> bool:
    """Whether the text is an object that breaks off: more could make it whole."""
    return _read_alone(text) == (False, True)


def _read_alone(text: str) -> tuple[bool, bool]:
    """Whether an object is whole here, and whether there is nothing but it."""
    source = Incoming()
    source.add(text.strip(" \t\r\n"))
    source.is_over = True
    reading = source.value([])
    try:
        next(reading)
    except StopIteration as ended:
        return bool(ended.value), source.text.startswith("{") and not source.num_unread
    raise AssertionError("a reader waits for more though nothing comes")


def whole_members(text: str) -> dict[str, Any]:
    """The members that are whole of an object that breaks off."""
    members: dict[str, Any] = {}
    decoder, place = json.JSONDecoder(), 1
    while text[:1] == "{":
        try:
            name, end = decoder.raw_decode(text, _past(text, place))
            value, place = decoder.raw_decode(text, _past(text, end))
            json_text([name, value]).encode()
        except (ValueError, RecursionError):
            break
        if not isinstance(name, str):
            break
        # A number that ends with the text may have had more digits.
        if place < len(text) or not isinstance(value, int | float):
            members[name] = value
    return members


def _past(text: str, place: int) -> int:
    """Where the next name or value begins."""
    match = _BETWEEN_VALUES.match(text, place)
    return place if match is None else match.end()
