"""An engine whose weights are kept as int8 or int4: another model, as linked as any."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_block_gguf
from torch import Tensor

from legokv import Engine, EngineSettings
from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.build.gate import GateRun
from legokv.built.folder import EngineFacts, cache_root, read_engine_folder
from legokv.checkpoint import load_weights
from legokv.checkpoint.source import checkpoint_folder
from legokv.engine.jobs import Prefill
from legokv.engine.request import GenerateRequest
from legokv.errors import EngineMismatch, InvalidRequest, NotFinite, UnsupportedModel
from legokv.model.dtypes import WEIGHT_FORMS
from legokv.runners.attention_forms import attention_form
from legokv.runners.eager import EagerRunner

INT8 = BuildSettings("e", weights="int8")
PROMPT = list(range(5, 60))


def built(checkpoint: Path, folder: Path, settings: BuildSettings = INT8) -> EngineFacts:
    build_engine_folder(checkpoint, folder, settings, say=lambda line: None)
    return read_engine_folder(folder)


def opened(folder: Path) -> Engine:
    return Engine.open(folder, settings=EngineSettings(runner="torch", pool_tokens=2048))


def logits_of(engine: Engine) -> Tensor:
    return engine.prefill([PROMPT]).logits


@pytest.mark.parametrize(
    ("name", "form", "most"),
    [
        ("llama", "int8", 0.1),
        ("llama-biased", "int8", 0.1),
        ("qwen3", "int8", 0.1),
        ("llama-biased", "int4", 5),
    ],
)
def test_an_engine_is_built_checked_and_opened_with_the_weights_its_blocks_stand_for(
    name: str, form: str, most: float, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    facts = built(tiny_checkpoint(name), tmp_path / "e", BuildSettings("e", weights=form))
    assert facts.weights == form
    assert facts.gate is not None
    assert facts.gate.passed
    assert facts.gate.kl_weights is not None
    assert 0 < facts.gate.kl_weights < most
    assert f"KL to the unrounded of {facts.gate.kl_weights:.4g}" in facts.gate.cost
    engine = opened(tmp_path / "e")
    found = logits_of(engine)
    assert torch.equal(logits_of(opened(tmp_path / "e")), found)
    # The same engine over tensors of what the bytes stand for: every bit is the same.
    dense = load_weights(tmp_path / "e", facts.model, torch.bfloat16, form)
    form = attention_form("auto", facts.model, torch.bfloat16)
    sizes = {"num_pages": engine.runner.num_pages, "page_size": facts.page_size}
    engine.executor._runner = EagerRunner(facts.model, dense, form, **sizes)
    assert torch.equal(logits_of(engine), found)


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_a_prompt_s_logits_have_the_same_bits_alone_and_beside_others(
    form: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    built(tiny_checkpoint("llama"), tmp_path / "e", BuildSettings("e", weights=form))
    engine = opened(tmp_path / "e")
    prompts = [PROMPT, PROMPT[7:8], list(range(80, 180)), PROMPT[::-1]]
    jobs = [engine.submit(GenerateRequest([prompt], 0)) for prompt in prompts]
    together = [list(engine.results(job))[-1] for job in jobs]
    for found, prompt in zip(together, prompts, strict=True):
        assert isinstance(found, Prefill)
        assert torch.equal(found.logits, engine.prefill([prompt]).logits)


def test_the_form_of_the_weights_is_in_the_fingerprint_so_kv_is_never_shared(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint("llama")
    of = {
        form: built(checkpoint, tmp_path / form, BuildSettings("e", weights=form))
        for form in WEIGHT_FORMS
    }
    assert len({facts.fingerprint for facts in of.values()}) == 3
    assert len({cache_root("cache", facts) for facts in of.values()}) == 3
    assert len({opened(tmp_path / form).chunk(PROMPT).key for form in of}) == 3


def test_an_engine_of_before_the_form_was_recorded_is_read_as_the_model_s_type(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    before = built(tiny_checkpoint("llama"), tmp_path / "e", BuildSettings("e"))
    file = tmp_path / "e" / "engine.json"
    fields = json.loads(file.read_text())
    del fields["weights"], fields["gate"]["kl_weights"]
    file.write_text(json.dumps(fields))
    assert read_engine_folder(tmp_path / "e") == before
    logits_of(opened(tmp_path / "e"))


@pytest.mark.parametrize(
    ("form", "message"),
    [("model", "was built of a model of fingerprint"), ("int3", "has weights 'int3', which no")],
)
def test_a_form_that_was_changed_in_engine_json_is_refused(
    form: str, message: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    built(tiny_checkpoint("llama"), tmp_path / "e")
    file = tmp_path / "e" / "engine.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"weights": form}))
    (tmp_path / "e" / "weights.seal").unlink(missing_ok=True)
    with pytest.raises(EngineMismatch, match=message):
        opened(tmp_path / "e")


@pytest.mark.parametrize(("form", "blocks"), [("int8", "Q8_0"), ("int4", "Q4_0")])
def test_an_engine_of_a_file_of_such_blocks_answers_as_that_file_s_numbers_say(
    form: str, blocks: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = write_block_gguf(tmp_path / "tiny.gguf", tiny_checkpoint("llama"), blocks)
    folder = checkpoint_folder("llama", file, tmp_path / "checkpoints", lambda line: None)
    facts = built(folder, tmp_path / "blocks", BuildSettings("e", weights=form))
    built(folder, tmp_path / "plain", BuildSettings("e"))
    exact, ours, plain = (
        load_weights(tmp_path / name, facts.model, dtype, of)
        for name, dtype, of in (
            ("plain", torch.float32, "model"),
            ("blocks", torch.bfloat16, form),
            ("plain", torch.bfloat16, "model"),
        )
    )
    for name, weight in exact.items():
        if weight.dim() < 2:
            continue
        found, even = ours[name].float(), plain[name].float()
        # Another number than the file's in bfloat16 only where that is as far off, away from 0.
        assert torch.equal((found - weight).abs(), (even - weight).abs()), name
        assert bool((found.abs() >= even.abs()).all()), name
    assert facts.gate is not None
    assert facts.gate.kl_weights == pytest.approx(0, abs=5e-3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weights": "int3"}, "weights 'int3' are none of model, int8, int4"),
        ({"weights": "int4", "dtype": "float32"}, "multiplied in bfloat16, the engine's dtype is"),
        *(
            ({"weights": form, "backend": "tensorrt"}, f"'{form}' are for CPUs, and backend tens")
            for form in ("int8", "int4")
        ),
    ],
)
def test_what_blocks_are_not_for_is_refused_with_the_next_step(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        BuildSettings("e", **settings)  # type: ignore[arg-type]


def test_a_tensor_with_a_number_that_is_none_is_refused_by_its_name(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(tiny_checkpoint("llama"), tmp_path / "c"))
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.mlp.down_proj.weight"
    tensors[name][3, 7] = math.nan
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnsupportedModel, match=f"{name} holds numbers that are none"):
        built(folder, tmp_path / "e")
    assert not (tmp_path / "e").exists()


def test_the_unrounded_weights_numbers_that_are_none_are_said_to_be_theirs_and_the_engine_passes(
    tiny_checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs: list[GateRun] = []
    full = GateRun.full

    def full_of_the_first(run: GateRun) -> list[Tensor]:
        runs.append(run)
        if run is runs[0]:
            return full(run)
        raise NotFinite("logit 7 is nan")

    monkeypatch.setattr(GateRun, "full", full_of_the_first)
    gate = built(tiny_checkpoint("llama"), tmp_path / "e").gate
    assert gate is not None
    assert gate.passed
    assert gate.kl_weights is None
    assert "the unrounded ones give what is not finite: logit 7 is nan" in caplog.text
    assert len(runs) == 2, "each engine's logits are computed once"
