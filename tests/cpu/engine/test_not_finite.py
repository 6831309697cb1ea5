"""Numbers that are none: they end whom they concern with an error that says so, and nobody else."""

import math
from dataclasses import replace

import pytest
import torch
from fake_runner import World, answer_to, chunk, events, tokens

from legokv import Engine, EngineSettings
from legokv.chunks.stored_kv import Int8Kv
from legokv.engine.draw import draw_tokens
from legokv.engine.request import AnswerOptions, Finished
from legokv.engine.sampling import Sampler, SamplingOptions
from legokv.errors import NotFinite

QUESTION = (7, 8, 9)
NOTHING_HELD = (0, 0, 0, 0)
NONE = (math.nan, math.inf, -math.inf)
PENALTIES = {"repetition_penalty": 1.2, "presence_penalty": 0.5, "frequency_penalty": 0.5}
OPTIONS = {
    "greedy": {},
    "temperature": {"temperature": 1.0},
    "top_k": {"temperature": 1.0, "top_k": 5},
    "top_p": {"temperature": 1.0, "top_p": 0.5},
    "min_p": {"temperature": 1.0, "min_p": 0.5},
    "penalties": PENALTIES,
    "all": {"temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1, **PENALTIES},
}


def spoil_logits(world, value, seen, count=1):
    """Of the rows whose prompt's last token is `seen` or that go on behind it, so many are bad."""
    whole = world.runner.run

    def run(batch):
        logits = whole(batch)
        for row, table in zip(logits, batch.pages.tolist(), strict=True):
            if seen in world.runner._seen(table):
                row[3 : 3 + count] = value
        return logits

    world.runner.run = run


def refusal(job):
    *before, last = events(job)
    assert isinstance(last, NotFinite), last
    return len(before), str(last)


@pytest.mark.parametrize("log_probs", [False, True])
@pytest.mark.parametrize("value", NONE)
@pytest.mark.parametrize("options", OPTIONS)
def test_logits_that_are_no_numbers_end_their_request_alone_whatever_it_asks_for(
    options, value, log_probs, caplog
):
    world = World()
    spoil_logits(world, value, seen=66, count=2)
    asked = {
        "sampling": SamplingOptions(seed=1, **OPTIONS[options]),
        "answering": AnswerOptions(return_log_probs=log_probs),
    }
    running = world.ask([1, 2], max_tokens=6)
    unlucky = world.ask([65, 66], max_tokens=6, **asked)
    world.finish()
    named = "2 are NaN and 0" if math.isnan(value) else "0 are NaN and 2"
    num_tokens, said = refusal(unlucky)
    assert num_tokens == 0
    assert said.startswith(f"of 97 logits for the next token {named} infinite: ")
    assert "dtype float32" in said
    assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD
    assert "Traceback" not in caplog.text


def test_the_bare_logits_of_a_prompt_are_numbers_or_an_error():
    world = World()
    spoil_logits(world, math.nan, seen=66)
    unlucky, running = world.ask([65, 66], max_tokens=0), world.ask([1, 2])
    world.finish()
    assert refusal(unlucky)[0] == 0
    assert tokens(running) == answer_to([1, 2], 3)


def test_of_several_answers_one_bad_row_ends_the_request_and_no_other():
    world = World()
    several = {
        "sampling": SamplingOptions(temperature=0.01, seed=3),
        "answering": AnswerOptions(num_return_sequences=3),
    }
    unlucky, running = world.ask([65, 5], max_tokens=6, **several), world.ask([1, 2], max_tokens=6)
    world.executor.step()
    spoil_logits(world, math.nan, seen=65)
    world.finish()
    assert refusal(unlucky)[0] == 3
    assert tokens(running) == answer_to([1, 2], 6)
    assert world.held == NOTHING_HELD


def test_penalties_that_nobody_checked_give_an_error_and_no_token():
    options = SamplingOptions(temperature=1.0, min_p=0.5)
    object.__setattr__(options, "repetition_penalty", 1e-320)
    with pytest.raises(NotFinite, match="1 infinite"):
        raise draw_tokens(torch.tensor([[1.0, 2.0, 3.0]]), [Sampler(options, [1]).draw()])[0]


@pytest.mark.parametrize("stored_dtype", ["model", "int8"])
@pytest.mark.parametrize("value", NONE)
def test_kv_with_a_number_that_is_none_is_neither_kept_nor_linked(value, stored_dtype, caplog):
    world = World(disk_bytes=10_000, host_bytes=10_000, stored_dtype=stored_dtype)
    whole = world.runner.export_pages

    def export(pages, num_tokens):
        kv = whole(pages, num_tokens)
        kv[0, 1, 4][kv[0, 1, 4] == 104] = value
        return kv

    world.runner.export_pages = export
    compiling, asking = world.compile(chunk(1)), world.ask(chunk(1), QUESTION)
    others = [world.ask(chunk(2), QUESTION), world.ask([1, 2])]
    world.finish()
    for job in (compiling, asking):
        num_events, said = refusal(job)
        assert num_events == 0
        assert said.startswith("the KV of a chunk of 10 tokens has NaN or infinity")
    assert tokens(others[0]) == answer_to([*chunk(2).token_ids, *QUESTION], 3)
    assert tokens(others[1]) == answer_to([1, 2], 3)
    assert (world.held, world.cache.find("key 1")) == (NOTHING_HELD, None)
    assert not world.disk.has("key 1")
    assert not world.host.has("key 1")
    assert "Traceback" not in caplog.text
    world.runner.export_pages = whole
    assert world.answer(chunk(1), QUESTION) == answer_to([*chunk(1).token_ids, *QUESTION], 3)


def spoilt(kv, how):
    """KV as no engine of this model stores it."""
    values = kv.values if isinstance(kv, Int8Kv) else kv
    if how in ("nan", "inf"):
        numbers = kv.scales if isinstance(kv, Int8Kv) else kv
        numbers[0, 0, 3] = float(how)
        return kv
    if how == "dtype":
        return replace(kv, scales=kv.scales.half()) if isinstance(kv, Int8Kv) else kv.half()
    wide = {"layers": (2, 1, 1, 1, 1), "heads": (1, 1, 1, 2, 1), "sizes": (1, 1, 1, 1, 3)}[how]
    many = values.repeat(*wide)
    return replace(kv, values=many, scales=many[..., 0].float()) if values is not kv else many


@pytest.mark.parametrize("stored_dtype", ["model", "int8"])
@pytest.mark.parametrize("how", ["nan", "inf", "dtype", "layers", "heads", "sizes"])
def test_a_chunk_that_was_stored_so_is_compiled_and_stored_again(how, stored_dtype, caplog):
    world = World(disk_bytes=10_000, stored_dtype=stored_dtype)
    expected = world.answer(chunk(1), QUESTION)
    world.cache.drop("key 1")
    world.disk.write(chunk(1), spoilt(world.disk.read(chunk(1)), how))
    asking, others = world.ask(chunk(1), QUESTION), world.ask([1, 2])
    world.finish()
    assert tokens(asking) == expected
    assert tokens(others) == answer_to([1, 2], 3)
    assert (world.executor.counters.compiled_chunks, world.held) == (2, NOTHING_HELD)
    (disk,) = world.tiers.stats()
    assert disk.failed_reads == {"not_finite" if how in ("nan", "inf") else "layout": 1}
    assert "chunk key 1 of the disk tier: it" in caplog.text
    world.cache.drop("key 1")
    assert world.answer(chunk(1), QUESTION) == expected
    assert world.executor.counters.loaded_chunks == 1


def test_a_chunk_is_compiled_and_not_called_stored_while_its_kept_copy_is_spoilt():
    world = World(disk_bytes=10_000)
    expected = world.answer(chunk(1), QUESTION)
    world.disk.write(chunk(1), spoilt(world.disk.read(chunk(1)), "nan"))
    world.cache.drop("key 1")
    waiting = [world.ask(chunk(1), QUESTION) for _ in range(3)]
    world.finish()
    assert [tokens(job) for job in waiting] == [expected] * 3
    compiling = world.compile(chunk(1))
    world.finish()
    assert isinstance(events(compiling)[-1], Finished)
    assert torch.isfinite(world.disk.read(chunk(1))).all()


@pytest.mark.parametrize("attention", ["native", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pages_that_held_such_numbers_spoil_nobody_s_answer(attention, dtype, tiny_engine_folder):
    settings = EngineSettings(pool_tokens=512, attention=attention, dtype=dtype)

    def answer(held):
        engine = Engine.open(tiny_engine_folder(), settings=settings)
        for pool in engine.runner.pools:
            pool.fill_(held)
        chunks = [engine.compile(range(first, first + 23)) for first in (50, 100)]
        return [token.id for token in engine.generate([*chunks, [7, 8]], max_tokens=20)]

    assert answer(math.nan) == answer(0)
