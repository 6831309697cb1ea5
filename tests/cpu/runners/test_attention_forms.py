"""Which form of attention an engine uses: the one asked for, said out loud, with equal answers."""

import logging
import shutil

import numpy as np
import pytest
import torch
from paths import PLUGINS

import legokv.kernels.build_cpu
from legokv import Engine, EngineSettings
from legokv.errors import InvalidRequest, NativeBuildFailed, NativeLibraryMissing
from legokv.kernels.build_cpu import NativeBuild, build_native_library, find_native_library
from legokv.runners import attention_forms


def random_ids(seed, length, vocabulary=384):
    return np.random.default_rng(seed).integers(3, vocabulary, length).tolist()


@pytest.fixture
def absent(tmp_path, monkeypatch):
    """A build folder with nothing in it, in place of the checkout's."""
    build = NativeBuild(out=tmp_path)
    monkeypatch.setattr(legokv.kernels.build_cpu, "NativeBuild", lambda: build)
    return build


@pytest.mark.parametrize("name", ["llama", "llama-untied", "llama-yarn", "qwen3"])
def test_both_forms_give_the_same_answers(tiny_engine_folder, name):
    answers = []
    for attention in ("native", "torch"):
        engine = Engine.open(
            tiny_engine_folder(name), settings=EngineSettings(pool_tokens=2048, attention=attention)
        )
        chunks = [engine.compile(random_ids(n, 70 + 9 * n)) for n in range(3)]
        segments = [*chunks, random_ids(9, 7)]
        linked = engine.prefill(segments).logits
        full = engine.prefill(segments, mode="full").logits
        tokens = [token.id for token in engine.generate(segments, max_tokens=20)]
        answers.append((linked, full, tokens))
    (linked, full, tokens), (torch_linked, torch_full, torch_tokens) = answers
    torch.testing.assert_close(linked, torch_linked, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(full, torch_full, atol=1e-4, rtol=1e-4)
    assert tokens == torch_tokens


def test_both_forms_give_the_same_answers_on_the_real_model(smollm2_engine_folder):
    answers = []
    for attention in ("native", "torch"):
        engine = Engine.open(
            smollm2_engine_folder,
            settings=EngineSettings(dtype="float32", pool_tokens=2048, attention=attention),
        )
        chunks = [engine.compile(random_ids(n, 120, 49152)) for n in range(3)]
        question = engine.tokenizer.encode("The capital of France is")
        logits = engine.prefill([*chunks, question]).logits
        tokens = engine.generate([*chunks, question], max_tokens=24)
        answers.append((logits, [token.id for token in tokens]))
    (logits, tokens), (torch_logits, torch_tokens) = answers
    torch.testing.assert_close(logits, torch_logits, atol=1e-3, rtol=0)
    assert tokens == torch_tokens


def test_the_steps_of_an_answer_go_on_from_each_other_beside_another_engine(
    tiny_engine_folder, monkeypatch
):
    """Two engines answer in turn: each goes on from its own step before."""
    settings = EngineSettings(pool_tokens=2048, attention="native")
    engines = [Engine.open(tiny_engine_folder(), settings=settings) for _ in range(2)]
    begun = [[], []]
    for engine, own in zip(engines, begun, strict=True):
        functions = engine.runner.attention.library.functions
        begin = functions.legokv_cpu_begin

        def noted(arguments, own=own, begin=begin):
            own.append(arguments)
            return begin(arguments)

        monkeypatch.setattr(functions, "legokv_cpu_begin", noted)
    # Other tables of one size.
    answers = [
        engine.generate([random_ids(number, 40)], max_tokens=12)
        for number, engine in enumerate(engines)
    ]
    tokens = [[a.id, b.id] for a, b in zip(*answers, strict=True)]
    assert len(tokens) == 12
    # The prompt's step, and the first with a token of the answer.
    assert [len(own) for own in begun] == [2, 2]
    for number, engine in enumerate(engines):
        alone = engine.generate([random_ids(number, 40)], max_tokens=12)
        assert [token.id for token in alone] == [both[number] for both in tokens]


def test_a_chunk_stored_by_one_form_is_read_by_the_other(tiny_engine_folder, tmp_path):
    logits = []
    for attention in ("torch", "native"):
        engine = Engine.open(
            tiny_engine_folder(), settings=EngineSettings(cache_dir=tmp_path, attention=attention)
        )
        chunks = [engine.chunk(random_ids(n, 50)) for n in range(2)]
        logits.append(engine.prefill([*chunks, [5, 6]]).logits)
    assert engine.executor.counters.loaded_chunks == 2
    torch.testing.assert_close(logits[0], logits[1], atol=1e-4, rtol=1e-4)


def test_auto_takes_the_library_where_it_is_compiled_and_says_so(tiny_engine_folder, caplog):
    build_native_library(print)
    with caplog.at_level(logging.INFO):
        engine = Engine.open(tiny_engine_folder())
    assert engine.runner.attention.description.startswith("native, ")
    assert f"attention: {engine.runner.attention.description}" in caplog.text


def test_a_build_of_the_library_that_is_named_is_taken_though_another_is_faster(
    tiny_engine_folder, caplog
):
    with caplog.at_level(logging.INFO):
        settings = EngineSettings(attention="portable")
        engine = Engine.open(tiny_engine_folder(), settings=settings)
    assert engine.runner.attention.description == "native, portable"
    assert "attention: native, portable, as asked" in caplog.text
    assert "milliseconds of a small layer" not in caplog.text


def test_a_build_that_the_type_or_the_processor_does_not_have_is_refused_with_those_it_has(
    tiny_engine_folder,
):
    settings = EngineSettings(dtype="float32", attention="avx512_bf16")
    with pytest.raises(InvalidRequest, match="no avx512_bf16 for float32 on this machine, only po"):
        Engine.open(tiny_engine_folder(), settings=settings)


def test_auto_without_a_library_says_why_it_takes_torch(tiny_engine_folder, absent, caplog):
    engine = Engine.open(tiny_engine_folder())
    assert engine.runner.attention.description == "torch"
    assert "attention: torch, the slower form, since no library" in caplog.text
    assert "run python build/build_native.py" in caplog.text


def test_an_installation_without_sources_says_so(tmp_path):
    build = NativeBuild(source=tmp_path, out=tmp_path)
    for look in (find_native_library, lambda build: build_native_library(print, build)):
        with pytest.raises(NativeLibraryMissing, match=r"no sources to compile.*attention 'torch'"):
            look(build)


def test_a_machine_without_a_compiler_says_so(absent, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(NativeLibraryMissing, match=r"no C\+\+ compiler: install g\+\+"):
        find_native_library(absent)


def test_a_wrong_compiler_named_in_the_environment_is_said_and_no_other_taken(absent, monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/g++")
    with pytest.raises(NativeLibraryMissing, match=r"CXX=/no/such/g\+\+ is no program: name"):
        build_native_library(print, absent)


def test_a_form_that_does_not_exist_is_refused(tiny_engine_folder):
    with pytest.raises(InvalidRequest, match=r"is one of auto, native, torch, .*not 'gpu'"):
        Engine.open(tiny_engine_folder(), settings=EngineSettings(attention="gpu"))


def test_a_changed_source_is_another_library_and_its_errors_are_shown(tmp_path):
    source = tmp_path / "plugins"
    for part in ("cpu", "include"):
        shutil.copytree(PLUGINS / part, source / part)
    shutil.copy(PLUGINS / "status.cpp", source)
    build = NativeBuild(source, tmp_path / "native")
    before = build.library()
    (source / "cpu" / "kernels" / "softmax.h").write_text("#error this cannot be compiled\n")
    assert build.library() != before
    with pytest.raises(NativeBuildFailed, match="this cannot be compiled"):
        build_native_library(print, build)
    assert not build.library().exists()
    assert [path.name for path in build.library().parent.iterdir()] == []


def test_an_engine_computes_on_as_many_threads_as_are_fastest_or_set(
    tiny_engine_folder, monkeypatch, torch_threads, caplog
):
    torch_threads(2)
    monkeypatch.setattr(attention_forms, "measured_threads", lambda *_: {1: 0.5, 2: 0.75})
    build_native_library(print)
    with caplog.at_level(logging.INFO):
        Engine.open(tiny_engine_folder("llama"), settings=EngineSettings(pool_tokens=256))
    assert torch.get_num_threads() == 1
    assert "threads: 1; milliseconds of small layers: on 1 0.5, on 2 0.75" in caplog.text
    settings = EngineSettings(pool_tokens=256, num_threads=2)
    Engine.open(tiny_engine_folder("llama"), settings=settings)
    assert torch.get_num_threads() == 2
