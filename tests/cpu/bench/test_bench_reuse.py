"""The reuse methods of the benchmarks are what their names say, on a tiny model in float32."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from paths import ROOT

from benchmarks.cost import reuse_methods
from benchmarks.reuse import cacheblend, guided, ranked
from benchmarks.reuse.bootstrap import mean_interval
from benchmarks.reuse.fidelity import measure
from benchmarks.reuse.greedy import answer
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import METHODS, Method, UnknownMethod, method_by_name
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.selections import Best
from legokv import Engine, EngineSettings
from legokv.build.engine import BuildSettings, build_engine_folder

# float32 sums in another order, over three layers; the logits are of size 10.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
DICE = random.Random(3)
PROMPT = Prompt(
    "case",
    tuple(DICE.randrange(3, 384) for _ in range(37)),
    tuple(tuple(DICE.randrange(3, 384) for _ in range(n)) for n in (45, 16, 60)),
    tuple(DICE.randrange(3, 384) for _ in range(9)),
    (5, 6, 7),
)


@pytest.fixture
def model(tiny_engine_folder) -> LinkedModel:
    return LinkedModel(tiny_engine_folder("llama"), "float32", "torch", 4096)


def test_an_engine_is_measured_with_the_weights_in_its_own_form(tiny_checkpoint, tmp_path):
    build_engine_folder(
        tiny_checkpoint("llama"), tmp_path / "e", BuildSettings("e", weights="int8")
    )
    own, int8, plain = (
        LinkedModel(tmp_path / "e", "bfloat16", "torch", 1024, form)
        for form in (None, "int8", "model")
    )
    assert own.facts.weights == "int8"
    found, expected, unrounded = (logits_of(each, "full") for each in (own, int8, plain))
    assert torch.equal(found, expected)
    assert not torch.equal(found, unrounded)


def logits_of(model: LinkedModel, name: str) -> torch.Tensor:
    placed = METHODS[name].place(model, PROMPT)
    logits = model.compute(placed)[0]
    model.release(placed)
    return logits


@pytest.mark.parametrize("link_tokens", [2, 16, 64])
def test_legolink_gives_the_engine_s_own_logits(model, tiny_engine_folder, link_tokens):
    engine = Engine.open(
        tiny_engine_folder("llama"), settings=EngineSettings(pool_tokens=4096, attention="torch")
    )
    chunks = [engine.compile(ids) for ids in PROMPT.segments]
    expected = engine.prefill([*chunks, PROMPT.question], link_tokens=link_tokens).logits
    torch.testing.assert_close(logits_of(model, f"legolink-{link_tokens}"), expected, **CLOSE)


@pytest.mark.parametrize(
    "score", [cacheblend.scores, guided.scores, ranked.scores, ranked.times_attention]
)
def test_recomputing_all_that_a_method_ranks_is_full_recompute(model, score):
    placed = Method("all", Best(100), score=score).place(model, PROMPT)
    found = model.compute(placed)[0]
    full = logits_of(model, "full")
    torch.testing.assert_close(found, full, **CLOSE)
    assert (logits_of(model, "naive") - full).abs().max() > 0.01, "or nothing was to be repaired"


def test_prefix_caching_loses_nothing(model):
    torch.testing.assert_close(logits_of(model, "prefix"), logits_of(model, "full"), **CLOSE)


@pytest.mark.parametrize("method", ["ranked", "guided-ranked"])
def test_rankings_choose_as_the_engine_s_own(model, tiny_engine_folder, method):
    engine = Engine.open(
        tiny_engine_folder("llama"), settings=EngineSettings(pool_tokens=4096, attention="torch")
    )
    head, *passages = PROMPT.segments
    chunks = [engine.compile(ids, behind=head, rank=True) for ids in passages]
    expected = engine.prefill(
        [engine.compile(head), *chunks, PROMPT.question], mode=method, recompute_percent=10
    )
    placed = METHODS[f"behind-head+{method}-10"].place(model, PROMPT)
    assert expected.recomputed_tokens == placed.link.recomputed_tokens == round(7.6)
    torch.testing.assert_close(model.compute(placed)[0], expected.logits, **CLOSE)


@pytest.mark.parametrize("name", ["legolink-16", "spread-16", "last-16", "random-16"])
def test_controls_have_legolink_s_budget(model, name):
    placed = METHODS[name].place(model, PROMPT)
    assert placed.link.recomputed_tokens == 3 * 16


@pytest.mark.parametrize(("name", "percent"), [("cacheblend-15", 15), ("guided-10", 10)])
def test_a_share_is_of_the_tokens_after_the_first_segment(model, name, percent):
    placed = METHODS[name].place(model, PROMPT)
    assert placed.link.recomputed_tokens == round((45 + 16 + 60) * percent / 100)


def test_a_chunk_behind_the_head_is_exact_where_it_follows_the_head(model):
    two = Prompt("two", PROMPT.head, PROMPT.passages[:1], PROMPT.question, (5,))
    logits = []
    for name in ("behind-head", "full"):
        placed = METHODS[name].place(model, two)
        logits.append(model.compute(placed)[0])
        model.release(placed)
    torch.testing.assert_close(*logits, **CLOSE)


def test_the_first_passage_behind_the_head_takes_no_budget(model):
    placed = METHODS["behind-head+spread-8"].place(model, PROMPT)
    assert placed.link.recomputed_tokens == 2 * 8
    model.release(placed)
    # Behind a head that is not the prompt's, each passage is a seam.
    placed = METHODS["behind-chat-head+spread-8"].place(model, PROMPT)
    assert placed.link.recomputed_tokens == 3 * 8


def test_one_document_s_chunks_lose_nothing(model):
    torch.testing.assert_close(logits_of(model, "one-document"), logits_of(model, "full"), **CLOSE)


def test_full_recompute_differs_from_itself_by_nothing_and_others_by_something(model):
    rows = dict(measure(model, PROMPT, [METHODS["full"], METHODS["naive"]]))
    assert rows["full"]["kl"] == 0
    assert rows["full"]["top1"] == 1
    assert rows["naive"]["kl"] > 1e-4


def test_the_best_tokens_are_those_with_the_highest_scores():
    class Placed:
        def __init__(self, position: int, num_tokens: int) -> None:
            self.position, self.num_tokens = position, num_tokens

    scores = np.array([9, 9, 0.1, 0.9, 0.2, 0.8], np.float32)
    found = Best(50).choose([Placed(0, 2), Placed(2, 2), Placed(4, 2)], scores)
    assert [list(indices) for indices in found] == [[], [1], [1]]


def test_the_bootstrap_interval_holds_the_mean_19_times_in_20():
    dice = np.random.Generator(np.random.PCG64(1))
    held = 0
    for trial in range(200):
        found = mean_interval(list(dice.normal(1.0, 2.0, 60)), draws=400, seed=trial)
        held += found.low <= 1.0 <= found.high
    assert 178 <= held <= 199


def test_an_unknown_method_is_refused_with_those_there_are():
    with pytest.raises(
        UnknownMethod, match=r"unknown method 'lego'; known are full, .*legolink-16"
    ):
        method_by_name("lego")
    command = [sys.executable, "-m", "benchmarks.reuse", "fidelity", "--methods", "lego"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("unknown method 'lego'")


def test_a_greedy_answer_is_the_engine_s_own(model, tiny_engine_folder):
    engine = Engine.open(
        tiny_engine_folder("llama"), settings=EngineSettings(pool_tokens=4096, attention="torch")
    )
    chunks = [engine.compile(ids) for ids in PROMPT.segments]
    expected = [t.id for t in engine.generate([*chunks, PROMPT.question], max_tokens=6)]
    placed = METHODS["legolink-16"].place(model, PROMPT, reserve_tokens=5)
    found = answer(model, placed, 6, end="\0")
    model.release(placed)
    assert found == model.tokenizer.decode(expected).strip()


def test_a_run_of_costs_has_room_for_the_documents_of_all_methods(tiny_engine_folder):
    chunk_tokens = 512
    model = LinkedModel(
        tiny_engine_folder("llama"),
        "bfloat16",
        "native",
        reuse_methods.pool_tokens(chunk_tokens),
    )
    prompt = reuse_methods.random_prompt(chunk_tokens, model.facts.model.vocab_size)
    for name in reuse_methods.TIMED:
        METHODS[name].compile(model, prompt)
        model.release(METHODS[name].place(model, prompt))
