"""Odd values, from a seeded random.Random: what a client's mistake or malice puts in a field."""

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

Dice = random.Random

WORDS = ("Who?", "The sea", "keeper of the lighthouse", " ", "a", "0", "null", "default", "-1")
LETTERS = (
    "\0", "\n", "\r\n", "\t", "\x1b[31m", "\x7f", "\u200b", "\u202e", "\ufeff", "\ufffd", "é",
    "e\u0301", "東京", "ก็ค่ะ", "👩‍🔬", "👨‍👩‍👧‍👦", "\U000e0041", "<|im_end|>",
    "<|im_start|>system\n", "<s>", "</s>", "{{ 7*7 }}", "%s%n", "../../x",
    "/dev/null", "'; DROP TABLE documents; --",
    "\\", '"', "<script>", "doc-000000000000000000000000",
)  # fmt: skip
NUMBERS: Sequence[Any] = (
    0, 1, -1, 2, 3, 7, 16, 255, 256, 65_535, 2**31 - 1, 2**31, -(2**31), 2**32, 2**53, 2**63 - 1,
    2**63, 2**64 - 1, 2**64, -(2**63) - 1, 10**30, 0.0, -0.0, 0.5, 1.0, 1.5, -0.1, 1e-45, 1e-320,
    1e38, 3e38, 1e308, float("inf"), float("-inf"), float("nan"), True, False,
)  # fmt: skip


def text(dice: Dice) -> str:
    """Mostly short; now and then empty, long, or of letters that are seldom met."""
    form = dice.randrange(10)
    if form < 4:
        return dice.choice(WORDS)
    if form < 8:
        return "".join(dice.choice((*LETTERS, *WORDS)) for _ in range(dice.randrange(12)))
    if form < 9:
        return dice.choice(LETTERS) * dice.choice((1, 100, 5_000))
    return "".join(chr(_code_point(dice)) for _ in range(dice.randrange(40)))


def _code_point(dice: Dice) -> int:
    """Any but the halves of a pair, which no UTF-8 has: `raw` makes those."""
    code = dice.randrange(0x110000)
    return code if not 0xD800 <= code < 0xE000 else code - 0xD800


def raw(dice: Dice) -> bytes:
    """Bytes that are mostly no UTF-8."""
    form = dice.randrange(5)
    if form == 0:
        return dice.randbytes(dice.choice((0, 1, 3, 16, 200)))
    if form == 1:
        return b"\xed\xa0\x80" + text(dice).encode()
    if form == 2:
        return text(dice).encode("utf-16")
    if form == 3:
        return text(dice).encode()[: dice.randrange(1, 9)]
    return b"\xff\xfe" * dice.randrange(1, 40)


def number(dice: Dice) -> Any:
    return dice.choice(NUMBERS) if dice.random() < 0.8 else dice.randint(-(10**6), 10**6)


def json_value(dice: Dice, depth: int = 3) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: text(dice),
        lambda: number(dice),
        lambda: None,
        lambda: [json_value(dice, depth - 1) for _ in range(dice.choice((0, 1, 2, 40)))],
        lambda: {text(dice): json_value(dice, depth - 1) for _ in range(dice.choice((0, 1, 5)))},
    ]
    return dice.choice(kinds if depth > 0 else kinds[:3])()


def damaged(dice: Dice, body: bytes) -> bytes:
    """The bytes with something lost, doubled, swapped or put in."""
    if not body:
        return body
    first = dice.randrange(len(body))
    last = min(len(body), first + dice.choice((1, 1, 2, 7, 50)))
    form = dice.randrange(4)
    if form == 0:
        return body[:first] + body[last:]
    if form == 1:
        return body[:last] + body[first:]
    if form == 2:
        return body[:first] + dice.randbytes(last - first) + body[last:]
    return (
        body[:first]
        + dice.choice((b"[", b"{", b'"', b"\0", b"\xff", b"1e999", b","))
        + body[first:]
    )


def deep(dice: Dice) -> bytes:
    """JSON that is nested as no request's is."""
    depth = dice.choice((40, 300, 5_000, 100_000))
    opening, closing = dice.choice((("[", "]"), ('{"a":', "}")))
    whole = opening * depth + dice.choice(("", "1" + closing * depth))
    return (
        dice.choice(('{"text_input":"Who?","parameters":%s}', "%s")).replace("%s", whole).encode()
    )


def as_json(value: Any) -> bytes:
    """As Python writes it, with NaN, Infinity and halves of pairs as they are."""
    return json.dumps(value).encode("utf-8", "surrogatepass")
