"""The real small model: equal to transformers, and EPIC's checks 1, 2 and 4 on real text."""

import pytest
import torch
from paths import ROOT
from transformers import AutoModelForCausalLM

from legokv import Engine, EngineSettings

DOCUMENTS = ROOT / "examples" / "documents"
# float32 sums in another order through 30 layers; logits are of size 20.
CLOSE = {"atol": 1e-3, "rtol": 0}


@pytest.fixture(scope="module")
def engine(smollm2_engine_folder):
    return Engine.open(
        smollm2_engine_folder, settings=EngineSettings(dtype="float32", pool_tokens=8192)
    )


@pytest.fixture(scope="module")
def ids(engine):
    texts = [path.read_text(encoding="utf-8") for path in sorted(DOCUMENTS.glob("*.txt"))]
    return engine.tokenizer.encode("\n\n".join(texts))[:600]


@pytest.fixture(scope="module")
def transformers_model(smollm2_engine_folder):
    return AutoModelForCausalLM.from_pretrained(smollm2_engine_folder, dtype=torch.float32).eval()


def test_logits_of_600_tokens_equal_transformers(engine, ids, transformers_model):
    with torch.inference_mode():
        expected = transformers_model(torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(engine.prefill([ids]).logits, expected, **CLOSE)


def test_a_greedy_continuation_of_32_tokens_equals_transformers(engine, ids, transformers_model):
    whole = transformers_model.generate(torch.tensor([ids]), max_new_tokens=32, do_sample=False)
    continuation = [token.id for token in engine.generate([ids], max_tokens=32)]
    assert continuation == whole[0, len(ids) :].tolist()


def test_check_1_with_k_at_least_every_chunk_s_length_logits_equal_full(engine, ids):
    chunks = [engine.compile(ids[start : start + 140]) for start in (0, 140, 280, 420)]
    linked = engine.prefill([*chunks, ids[560:]], link_tokens=140)
    torch.testing.assert_close(linked.logits, engine.prefill([ids]).logits, **CLOSE)
    assert (linked.cached_tokens, linked.recomputed_tokens) == (140, 420)


def test_check_2_one_chunk_and_a_question_equal_full_recompute(engine, ids):
    linked = engine.prefill([engine.compile(ids[:570]), ids[570:]], link_tokens=16)
    torch.testing.assert_close(linked.logits, engine.prefill([ids]).logits, **CLOSE)
    assert linked.recomputed_tokens == 0


def test_check_4_the_counter_of_recomputed_tokens_is_k_times_chunks_but_one(engine, ids):
    chunks = [engine.compile(ids[start : start + 50]) for start in range(0, 500, 50)]
    linked = engine.prefill([*chunks, ids[500:520]], link_tokens=16)
    assert linked.recomputed_tokens == 16 * 9
    assert linked.fresh_tokens == 20
