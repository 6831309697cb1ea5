"""Texts drawn by chance from what a format allows have it, whatever the vocabulary's kind."""

import json
import random
from contextlib import suppress

import jsonschema
import numpy as np
import pytest
from sentencepiece_like import sentencepiece_tokenizer
from tiny_checkpoints import tiny_tokenizer

from legokv.errors import FormatFailed, InvalidRequest
from legokv.text.answer_format import read_format
from legokv.text.grammar import Grammars
from legokv.text.stream import TextStream
from legokv.text.tokenizer import Tokenizer

SPARE = 40
"""Of the model's vocabulary, so many ids behind the tokenizer's last."""
NAME = {"type": "string", "pattern": "^[A-Z][a-zé]{1,8}$"}
SCHEMAS = {
    "flat": {
        "type": "object",
        "properties": {"name": NAME, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "enum": {"enum": ["red", "grün", 3, None, ["a"], {"b": False}]},
    "list": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 4},
    "nested": {
        "type": "object",
        "properties": {
            "at": {
                "type": "object",
                "properties": {"x": {"type": "integer", "maximum": 99, "minimum": -99}},
                "required": ["x"],
                "additionalProperties": False,
            },
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
        "required": ["at"],
        "additionalProperties": False,
    },
    "any of": {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 5, "maximum": 12}]},
    "tree": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "v": {"enum": [0, 1]},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "date": {"type": "string", "format": "date"},
    "text": {"type": "string", "maxLength": 12},
    "numbers": {
        "type": "array",
        "prefixItems": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "€"}],
        "minItems": 2,
        "items": False,
    },
    "all of": {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 8}]},
}


def byte_level():
    return Tokenizer(tiny_tokenizer().backend_tokenizer.to_str(), {"eos_token": "<|im_end|>"}, None)


def of(tokenizer):
    return Grammars(tokenizer, tokenizer.vocab_size + SPARE, tokenizer.eos_token_ids)


TOKENIZERS = {"byte level": byte_level, "byte fallback": sentencepiece_tokenizer}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request):
    return TOKENIZERS[request.param]()


@pytest.fixture(scope="module")
def grammars(tokenizer):
    return of(tokenizer)


@pytest.fixture
def tried_before(monkeypatch):
    """No process of its own tries a format first: it is one of ours."""
    monkeypatch.setattr("legokv.text.grammar.why_refused", lambda grammar: "")


def asked(**record):
    return read_format(json.dumps(record))


def of_schema(schema):
    return asked(type="json_schema", json_schema={"schema": schema})


def drawn(grammars, tokenizer, wanted, dice, most=400):
    """A text of tokens drawn evenly from what may come, None where it has no end by then."""
    (state,) = grammars.begin(wanted)
    stream, text = TextStream(tokenizer), ""
    for _ in range(most):
        ids = np.flatnonzero(state.allowed())
        token_id = int(dice.choice(ids))
        if token_id in tokenizer.eos_token_ids:
            return text + stream.finish()
        assert tokenizer.control_text(token_id) is None
        state.accept(token_id)
        text += stream.push(token_id)
    return None


@pytest.mark.usefixtures("tried_before")
@pytest.mark.parametrize("name", SCHEMAS)
def test_every_answer_that_ends_validates(grammars, tokenizer, name):
    schema, dice = SCHEMAS[name], random.Random(5)
    texts = [drawn(grammars, tokenizer, of_schema(schema), dice) for _ in range(8)]
    ended = [text for text in texts if text is not None]
    assert len(ended) >= 4
    for text in ended:
        jsonschema.validate(json.loads(text), schema)


@pytest.mark.usefixtures("tried_before")
def test_a_json_object_is_one(grammars, tokenizer):
    dice = random.Random(6)
    texts = [drawn(grammars, tokenizer, asked(type="json_object"), dice) for _ in range(12)]
    ended = [json.loads(text) for text in texts if text is not None]
    assert ended
    assert all(isinstance(value, dict) for value in ended)


@pytest.mark.usefixtures("tried_before")
def test_a_choice_and_a_regex_are_met_whole(grammars, tokenizer):
    dice = random.Random(7)
    choice = ["yes", "no", 'a "b"\n', "né"]
    wanted = asked(type="choice", choice=choice)
    assert {drawn(grammars, tokenizer, wanted, dice) for _ in range(40)} == set(choice)
    wanted = asked(type="regex", regex="[ab]{2,3}c")
    texts = {drawn(grammars, tokenizer, wanted, dice) for _ in range(20)}
    assert all(set(text[:-1]) <= {"a", "b"} and text.endswith("c") for text in texts)


@pytest.mark.usefixtures("tried_before")
def test_end_tokens_come_only_where_the_format_ends(grammars, tokenizer):
    (state,) = grammars.begin(asked(type="choice", choice=["ab"]))
    (end,) = tokenizer.eos_token_ids
    for letter in "ab":
        assert not state.allowed()[end]
        state.accept(tokenizer.encode(letter)[-1])
    assert np.flatnonzero(state.allowed()).tolist() == [end]
    with pytest.raises(FormatFailed, match="the answer's format: "):
        state.accept(tokenizer.encode("c")[-1])


@pytest.mark.usefixtures("tried_before")
def test_states_of_one_format_go_their_own_ways(grammars, tokenizer):
    one, other = grammars.begin(asked(type="choice", choice=["ab", "ba"]), 2)
    before = other.allowed()
    one.accept(tokenizer.encode("a")[-1])
    assert np.array_equal(other.allowed(), before)
    assert not np.array_equal(one.allowed(), before)


def chain(count, made):
    """`count` definitions, each made of a $ref to the next."""
    names = [{"$ref": f"#/$defs/d{n}"} for n in range(1, count + 1)]
    defs = {f"d{n}": made(ref) for n, ref in enumerate(names)} | {f"d{count}": {"type": "object"}}
    return {"$defs": defs, "$ref": "#/$defs/d0"}


def deep(count):
    schema = {"type": "integer"}
    for _ in range(count):
        schema = {"type": "array", "items": schema}
    return schema


REFUSED = {
    "unknown type": ({"type": "strng"}, "Invalid type: strng"),
    "a keyword that is not done": ({"type": "array", "uniqueItems": True}, "uniqueItems"),
    "no value": ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable"),
    "no regex": ({"type": "string", "pattern": "["}, "unclosed character class"),
    "a look-ahead": ({"type": "string", "pattern": "^(?=a)b$"}, "look-ahead"),
    "a missing $ref": ({"$ref": "#/$defs/none"}, "does not exist"),
    "a remote $ref": ({"$ref": "http://127.0.0.1:9/x.json"}, "127.0.0.1"),
    "a file's $ref": ({"$ref": "file:///etc/passwd"}, "does not fetch"),
    "a loop of $refs": (
        {"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}, "no answer has it"
    ),
    "itself": ({"$ref": "#"}, "no answer has it"),
    "a choice of itself": ({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}, "no answer has it"),
    "too many levels": (deep(400), "recursion limit"),
    "a product of choices": (
        {"allOf": [{"anyOf": [{"properties": {f"{i}{j}": {"type": "null"}}} for j in range(4)]}
                   for i in range(10)]},
        "too large",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_schema_that_cannot_be_held_to_is_refused_with_the_reason(name):
    grammars = of(byte_level())
    schema, reason = REFUSED[name]
    start = "the JSON schema of response_format is refused: "
    with pytest.raises(InvalidRequest, match=f"{start}.*{reason}"):
        grammars.begin(of_schema(schema))


HOSTILE = {
    "1e9 items": {"type": "array", "items": {"type": "integer"}, "minItems": 10**9},
    "a pattern of 1e9 letters": {"type": "string", "pattern": "^a{1000000000}$"},
    "nested repetitions": {"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"},
    "many texts": {"enum": [f"value {n}" for n in range(5000)]},
    "doubling": chain(30, lambda ref: {"type": "array", "prefixItems": [ref, ref]}),
    "a chain of 3,000": chain(3000, lambda ref: ref),
    "multiples that take seconds": {"type": "integer", "multipleOf": 999983},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_ends_no_process_and_costs_bounded_steps(name):
    """It is refused, or fails while its answer is drawn, or goes on."""
    tokenizer = byte_level()
    grammars = of(tokenizer)
    with suppress(InvalidRequest, FormatFailed):
        drawn(grammars, tokenizer, of_schema(HOSTILE[name]), random.Random(1), most=40)
    assert grammars.begin(asked(type="json_object"))


def test_what_would_end_or_hold_up_a_process_is_refused_with_the_bounds():
    grammars = of(byte_level())
    with pytest.raises(InvalidRequest, match="too deep, or takes more than 2 seconds and 1024 MiB"):
        grammars.begin(of_schema(HOSTILE["a chain of 3,000"]))


def test_a_model_without_end_tokens_has_no_formats(tokenizer):
    with pytest.raises(InvalidRequest, match="the model has no end token"):
        Grammars(tokenizer, tokenizer.vocab_size, ()).begin(asked(type="json_object"))
