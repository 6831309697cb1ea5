"""Answers of a format beside others, through the engine of a model that knows nothing."""

import json

import jsonschema
import pytest
from texts import random_ids

from legokv import AnswerOptions, Engine, EngineSettings, GenerateRequest, SamplingOptions
from legokv.errors import FormatFailed, InvalidRequest
from legokv.text.grammar import GrammarState

SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "grün", None]},
        "sizes": {"type": "array", "items": {"enum": [1, 2]}, "minItems": 1, "maxItems": 3},
    },
    "required": ["colour", "sizes"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "piece", "schema": SCHEMA}}
QUESTION = [5, 6, 7]


@pytest.fixture
def engine(tiny_engine_folder):
    return Engine.open(
        tiny_engine_folder(), settings=EngineSettings(pool_tokens=2048, num_threads=1)
    )


def request(number=0, segments=(QUESTION,), max_tokens=60, wanted=FORMAT, **options):
    answering = {k: options.pop(k) for k in [*options] if k in AnswerOptions.__annotations__}
    sampling = SamplingOptions(temperature=1.0, seed=number, **options)
    text = None if wanted is None else json.dumps(wanted)
    answers = AnswerOptions(response_format=text, **answering)
    return GenerateRequest(list(segments), max_tokens, sampling=sampling, answering=answers)


def answers_of(engine, job, count=1):
    """Text and last finish reason of each answer."""
    texts, reasons = [""] * count, [None] * count
    for event in engine.results(job):
        if hasattr(event, "sequence_index"):
            texts[event.sequence_index] += event.text
            reasons[event.sequence_index] = event.finish_reason
    return list(zip(texts, reasons, strict=True))


def without_blanks(engine, options):
    """A model that knows nothing draws blanks as long as it may."""
    tokenizer = engine.tokenizer
    blank = [i for i in range(tokenizer.vocab_size) if not tokenizer.token_bytes(i).strip()]
    return options | {"logit_bias": dict.fromkeys(blank, -100) | options.get("logit_bias", {})}


OPTIONS = (
    {},
    {"top_k": 20},
    {"top_p": 0.9, "frequency_penalty": 1.0},
    {"repetition_penalty": 1.3, "min_p": 0.01},
    {"return_log_probs": True, "num_top_log_probs": 3},
    {"logit_bias": {9: 5.0}, "top_k": 50},
    {"min_tokens": 50},
)


def test_answers_validate_at_temperature_1_and_those_beside_them_do_not_change(engine):
    plain = [request(n, wanted=None, max_tokens=12, **options) for n, options in enumerate(OPTIONS)
             if "min_tokens" not in options]  # fmt: skip
    alone = [answers_of(engine, engine.submit(one)) for one in plain]
    held = [request(n, **without_blanks(engine, options)) for n, options in enumerate(OPTIONS)]
    beside = [engine.submit(one) for one in plain]
    jobs = [engine.submit(one) for one in held]
    assert [answers_of(engine, job) for job in beside] == alone
    ended = [text for job in jobs for text, why in answers_of(engine, job) if why == "stop"]
    assert len(ended) >= 5
    for text in ended:
        jsonschema.validate(json.loads(text), SCHEMA)


def test_several_answers_have_it_each_and_what_is_cut_says_length(engine):
    several = request(3, num_return_sequences=4, **without_blanks(engine, {}))
    for text, why in answers_of(engine, engine.submit(several), 4):
        if why == "stop":
            jsonschema.validate(json.loads(text), SCHEMA)
        else:
            assert why == "length"
    ((text, why),) = answers_of(engine, engine.submit(request(4, max_tokens=3)))
    assert (text[0], why) == ("{", "length")


def test_generate_takes_a_format_as_an_object_or_as_json(engine):
    wanted = {"type": "choice", "choice": ["yes", "no"]}
    segments = [engine.compile(random_ids(1, 20)), QUESTION]
    for given in (wanted, json.dumps(wanted)):
        tokens = [*engine.generate(segments, max_tokens=20, response_format=given)]
        assert "".join(token.text for token in tokens) in ("yes", "no")
        assert tokens[-1].finish_reason == "stop"


def test_a_format_that_cannot_be_is_refused_before_anything_is_computed(engine):
    for wanted, message in [
        ({"type": "regex", "regex": "["}, "the regex of response_format is refused: .*unclosed"),
        ({"type": "yaml"}, "type is one of text, json_object"),
    ]:
        with pytest.raises(InvalidRequest, match=message):
            engine.generate([QUESTION], max_tokens=5, response_format=wanted)
    assert engine.executor.counters.steps == 0


def test_a_bias_on_what_is_no_token_is_refused(engine):
    size = engine.facts.model.vocab_size
    with pytest.raises(InvalidRequest, match=f"logit_bias has {size}: token ids lie between 0 and"):
        engine.submit(request(wanted=None, logit_bias={size: 1.0}))


def test_a_format_that_fails_on_the_way_ends_its_request_alone(engine, monkeypatch):
    unlucky, other = engine.submit(request(1)), engine.submit(request(2, wanted=None))
    engine.step()
    engine.step()

    def fail(self):
        raise FormatFailed("the answer's format: too complex")

    monkeypatch.setattr(GrammarState, "allowed", fail)
    with pytest.raises(FormatFailed, match="the answer's format: too complex"):
        answers_of(engine, unlucky)
    ((text, why),) = answers_of(engine, other)
    assert text
    assert why in ("stop", "length")
