"""How long llguidance and xgrammar take to compile a schema, and to say which tokens may come next.

    python -m benchmarks.format_speed [--tokenizer out/engines/llama/tokenizer.json] [--rounds 5]

It needs no engine and none of this project's modules, so that it runs in an environment of its own
which has both libraries and transformers: xgrammar is in no extra of this project. Each schema is
compiled by turns, and each token of an answer to it is asked for and taken by turns.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

Matcher = tuple[Callable[[], None], Callable[[int], bool]]
"""Fills the mask of the next token; takes a token, and says whether it may come."""
Compile = Callable[[str], Callable[[], Matcher]]
"""Compiles a schema; what it gives begins an answer."""

_NAME = {"type": "string", "minLength": 1, "maxLength": 64}
_MONEY = {"type": "number", "minimum": 0, "maximum": 1_000_000}
_DAY = {"type": "string", "pattern": r"^\d{4}-\d{2}-\d{2}$"}


def _record(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    members = {**required, **optional}
    return {
        "type": "object",
        "properties": members,
        "required": list(required),
        "additionalProperties": False,
    }


_ADDRESS = _record({"street": _NAME, "town": _NAME, "code": {"type": "string"}}, country=_NAME)
_ROW = _record({"title": _NAME, "count": {"type": "integer", "minimum": 1}, "price": _MONEY})
_TREE = _record({"name": _NAME, "children": {"type": "array", "items": {"$ref": "#/$defs/tree"}}})
SCHEMAS: dict[str, tuple[dict[str, Any], Any]] = {
    "yes or no": (_record({"answer": {"type": "boolean"}}), {"answer": True}),
    "address": (_ADDRESS, {"street": "Quay 3", "town": "Vellin", "code": "1042", "country": "V"}),
    "one of 50 words": (
        _record({"word": {"enum": [f"word number {n}" for n in range(50)]}}),
        {"word": "word number 37"},
    ),
    "person": (
        _record(
            {"name": _NAME, "born": _DAY, "address": _ADDRESS},
            mail={"type": "string", "format": "email"},
            tags={"type": "array", "items": _NAME, "maxItems": 8},
        ),
        {
            "name": "Orrin",
            "born": "1960-02-03",
            "address": {"street": "Pier 1", "town": "Vellin", "code": "1040"},
            "tags": ["keeper", "boats"],
        },
    ),
    "invoice": (
        _record({"rows": {"type": "array", "items": _ROW, "minItems": 1}, "total": _MONEY}),
        {
            "rows": [{"title": f"Part {n}", "count": n, "price": 1.5 * n} for n in range(1, 5)],
            "total": 45.0,
        },
    ),
    "tree": (
        {"$defs": {"tree": _TREE}, "$ref": "#/$defs/tree"},
        {"name": "a", "children": [{"name": "b", "children": []}, {"name": "c", "children": []}]},
    ),
    "tool call": (
        {
            "anyOf": [
                _record({"name": {"const": f"tool_{n}"}, "arguments": _record({"city": _NAME})})
                for n in range(8)
            ]
        },
        {"name": "tool_5", "arguments": {"city": "Vellin"}},
    ),
    "quotes with places": (
        _record(
            {
                "quotes": {
                    "type": "array",
                    "items": _record(
                        {"text": {"type": "string"}, "page": {"type": "integer", "minimum": 1}}
                    ),
                }
            }
        ),
        {"quotes": [{"text": "The ferry leaves at seven, and comes back.", "page": 12}] * 3},
    ),
    "40 members": (
        _record({f"member_{n}": {"type": ["integer", "null"]} for n in range(40)}),
        {f"member_{n}": n if n % 3 else None for n in range(40)},
    ),
    "any object": ({"type": "object"}, {"a": [1, 2, {"b": "c"}], "d": None}),
}


def by_llguidance(tokenizer: Any) -> Compile:
    """Masks by llguidance, in memory that is taken once."""
    guidance = importlib.import_module("llguidance")
    numpy_masks = importlib.import_module("llguidance.numpy")
    vocabulary = importlib.import_module("llguidance.hf").from_tokenizer(tokenizer)
    mask = numpy_masks.allocate_token_bitmask(1, vocabulary.vocab_size)

    def compiled(schema: str) -> Callable[[], Matcher]:
        grammar = guidance.LLMatcher.grammar_from_json_schema(schema)
        first = guidance.LLMatcher(vocabulary, grammar)
        if first.is_error():
            raise ValueError(first.get_error())

        def begun() -> Matcher:
            one = first.deep_copy()
            return (
                lambda: numpy_masks.fill_next_token_bitmask(one, mask),
                lambda token_id: bool(one.consume_token(token_id)),
            )

        return begun

    return compiled


def by_xgrammar(tokenizer: Any) -> Compile:
    """Masks by xgrammar, on one thread, each compiled anew."""
    grammars = importlib.import_module("xgrammar")
    info = grammars.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    mask = grammars.allocate_token_bitmask(1, info.vocab_size)
    compiler = grammars.GrammarCompiler(info, max_threads=1, cache_enabled=False)

    def compiled(schema: str) -> Callable[[], Matcher]:
        grammar = compiler.compile_json_schema(schema)

        def begun() -> Matcher:
            one = grammars.GrammarMatcher(grammar)

            def fill() -> None:
                one.fill_next_token_bitmask(mask)

            return fill, lambda token_id: bool(one.accept_token(token_id))

        return begun

    return compiled


def mask_seconds(begun: Matcher, token_ids: list[int]) -> Iterator[float]:
    """Of each token's mask; ValueError for an answer that is refused."""
    fill, take = begun
    for token_id in token_ids:
        started = time.perf_counter()
        fill()
        yield time.perf_counter() - started
        if not take(token_id):
            raise ValueError(f"token {token_id} is refused")


def main() -> None:
    """Print a table: a schema's compile time, and its masks' mean and longest."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, default="out/engines/llama/tokenizer.json")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    transformers = importlib.import_module("transformers")
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(options.tokenizer), eos_token="<|im_end|>"
    )
    ways = {"llguidance": by_llguidance(tokenizer), "xgrammar": by_xgrammar(tokenizer)}
    print(", ".join(f"{name} {version(name)}" for name in ways), f"{len(tokenizer)} tokens")
    print("| schema | tokens | " + " | ".join(f"{n}: compile, mask, longest" for n in ways) + " |")
    print("|---|---|" + "---|" * len(ways))
    for title, (schema, answer) in SCHEMAS.items():
        text = json.dumps(answer, separators=(",", ":"))
        ids = tokenizer.encode(text, add_special_tokens=False)
        cells = [_cell(*_measured(way, schema, ids, options.rounds)) for way in ways.values()]
        print(f"| {title} | {len(ids)} | {' | '.join(cells)} |", flush=True)


def _measured(
    way: Compile, schema: dict[str, Any], ids: list[int], rounds: int
) -> tuple[list[float], list[float]]:
    compiles, masks = [], []
    for number in range(rounds):
        # Another title each time: what a library keeps of the last one is of no use.
        text = json.dumps({**schema, "title": f"form {number}"})
        started = time.perf_counter()
        begun = way(text)
        compiles.append(time.perf_counter() - started)
        masks += list(mask_seconds(begun(), ids))
    return compiles, masks


def _cell(compiles: list[float], masks: list[float]) -> str:
    mean, longest = statistics.mean(masks), max(masks)
    return f"{_ms(statistics.median(compiles))}, {_ms(mean)}, {_ms(longest)} ms"


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.3g}"


if __name__ == "__main__":
    main()
