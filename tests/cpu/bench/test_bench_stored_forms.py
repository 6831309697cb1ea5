"""The benchmark of int8 KV measures what an engine that keeps int8 does, on a tiny model."""

import random

import pytest
import torch

from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.prompt import Prompt
from benchmarks.stored_forms import compare_forms, cost, fidelity_rows, round_pools
from legokv import Engine, EngineSettings
from legokv.link.policy import legolink

DICE = random.Random(5)
PROMPT = Prompt(
    "case",
    (),
    tuple(tuple(DICE.randrange(3, 384) for _ in range(n)) for n in (37, 45)),
    tuple(DICE.randrange(3, 384) for _ in range(9)),
    (5, 6, 7),
)


@pytest.fixture
def model(tiny_engine_folder) -> LinkedModel:
    return LinkedModel(tiny_engine_folder("llama"), "float32", "torch", 1024)


def test_rounded_pools_give_the_answer_of_an_engine_that_keeps_int8(model, tiny_engine_folder):
    logits = {}
    for form in ("model", "int8"):
        engine = Engine.open(
            tiny_engine_folder("llama"),
            settings=EngineSettings(pool_tokens=1024, attention="torch", kv_stored_dtype=form),
        )
        chunks = map(engine.compile, PROMPT.segments)
        logits[form] = engine.prefill([*chunks, PROMPT.question]).logits
    chunks = [model.compile(segment) for segment in PROMPT.segments]
    round_pools(model)
    found = model.compute(model.bind(model.place([*chunks, PROMPT.question]).link(legolink(16))))[0]
    # float32 sums in another order; rounding to int8 moves the logits a hundred times as far.
    torch.testing.assert_close(found, logits["int8"], atol=2e-4, rtol=1e-4)
    assert not torch.allclose(found, logits["model"], atol=2e-3, rtol=1e-3)


def test_a_case_is_compared_over_all_its_answer_and_averaged_by_set(model):
    numbers = compare_forms(model, PROMPT)
    assert 0 < numbers["kl"] < 0.1
    rows = fidelity_rows({"essays/a": numbers, "essays/b": {**numbers, "kl": 0.0}})
    assert [(row["set"], row["metric"]) for row in rows] == [
        ("essays", "kl"),
        ("essays", "top1"),
        ("essays", "delta_nll"),
    ]
    assert rows[0]["mean"] == round(numbers["kl"] / 2, 6)


def test_a_form_s_cost_counts_the_bytes_that_are_stored(model):
    plain, small = (cost(model, form, 1) for form in ("model", "int8"))
    # float32 KV of 16 values a head: a quarter, and a float32 scale beside them.
    assert small["bytes_a_token"] / plain["bytes_a_token"] == pytest.approx(20 / 64, rel=0.01)
    assert small["store"]["median"] > 0
