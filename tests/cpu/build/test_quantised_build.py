"""What `--quantize` asks for: where it is refused, and FP8's calibration that a rebuild repeats."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from build_command import build_engine
from paths import ROOT
from quantised_checkpoints import COMPRESSED, fp8_checkpoint
from safetensors.torch import load_file
from torch import Tensor

from legokv import Engine, EngineSettings
from legokv.build.calibration import (
    CALIBRATION_FILE,
    MOST_TEXT_TOKENS,
    Calibration,
    calibrate,
    kept_calibration,
    run_text,
)
from legokv.build.engine import BuildSettings, facts_from_checkpoint
from legokv.build.gate import PASSAGES
from legokv.built.folder import FACTS_FILE
from legokv.checkpoint import load_weights, read_model_config
from legokv.checkpoint.fingerprint import calibrated_fingerprint
from legokv.errors import InvalidRequest, UnsupportedModel
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import PLAN_FORMS
from legokv.ops.quantised_weight import FP8_MOST

RTX = BuildSettings("e", backend="tensorrt-rtx", samples=PASSAGES)


def test_where_auto_chooses_a_plan_it_is_quantised_as_asked(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "build"))
    import engine_command

    asked: list[BuildSettings] = []
    monkeypatch.setattr(engine_command, "choose_backend", lambda *of: "tensorrt-rtx")
    monkeypatch.setattr(
        engine_command, "build_engine_folder", lambda *of, **named: asked.append(of[2])
    )
    monkeypatch.setattr(
        engine_command, "read_engine_folder", lambda path: SimpleNamespace(gate=None)
    )
    options = ["--checkpoint", str(tiny_checkpoint("llama")), "--output", str(tmp_path / "e")]
    for word, form in PLAN_FORMS.items():
        engine_command.build(engine_command.parse_arguments(None, [*options, "--quantize", word]))
        assert (asked[-1].backend, asked[-1].weights) == ("tensorrt-rtx", form)
    # Where it chooses none, a plan that is there may be as the checkpoint is.
    monkeypatch.setattr(engine_command, "choose_backend", lambda *of: "torch")
    for more, as_stored in (([], True), (["--quantize", "none"], False)):
        engine_command.build(engine_command.parse_arguments(None, [*options, *more]))
        assert (asked[-1].any_plan, asked[-1].as_stored) == (True, as_stored)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"backend": "tensorrt-llm"}, "not for backend tensorrt-llm.*choose --backend tensorrt or"),
        ({"dtype": "float16"}, "dtype is float16: choose --dtype bfloat16, or --quantize none"),
    ],
)
def test_backends_and_types_that_have_no_such_plan_are_refused_with_the_next_step(
    settings: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRequest, match=message):
        replace(RTX, weights="qdq-fp8", **settings)


def test_each_form_has_a_fingerprint_of_its_own(tiny_checkpoint: Callable[[str], Path]) -> None:
    checkpoint = tiny_checkpoint("llama-wide")
    forms = ("model", "qdq-fp8", "qdq-int4")
    facts = [facts_from_checkpoint(checkpoint, replace(RTX, weights=form)) for form in forms]
    assert len({each.fingerprint for each in facts}) == 3
    assert [each.weights for each in facts] == [*forms]


def test_rows_that_are_no_blocks_of_int4_are_refused_before_plugins_are_compiled(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legokv.ops.quantised_weight.BLOCKS", (48,))
    checkpoint = tiny_checkpoint("llama-wide")
    with pytest.raises(
        UnsupportedModel, match=r"layers\.0\.qkv\.weight has rows of .* blocks of 48"
    ):
        facts_from_checkpoint(checkpoint, replace(RTX, weights="qdq-int4"))
    assert facts_from_checkpoint(checkpoint, replace(RTX, weights="qdq-fp8"))


def largest_inputs(checkpoint: Path, texts: list[list[int]]) -> dict[str, float]:
    """By hooks on a model of its own: what each product of layer 1 is given at most."""
    config = read_model_config(checkpoint)
    decoder = decoder_from_weights(config, load_weights(checkpoint, config, torch.bfloat16))
    found: dict[str, list[Tensor]] = {}
    for name in ("qkv", "out", "gate_up", "down"):
        product = decoder.get_submodule(f"layers.1.{name}")
        given = found.setdefault(f"layers.1.{name}", [])
        product.register_forward_pre_hook(lambda _, x, given=given: given.append(x[0]))
    for ids in texts:
        run_text(decoder, ids, [0])
    return {name: max(float(x.abs().max()) for x in given) for name, given in found.items()}


def test_a_calibration_divides_each_product_s_largest_input_to_448_the_same_each_time(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint("llama-biased")
    config = read_model_config(checkpoint)
    said: list[str] = []
    ran: list[list[int]] = []

    def run(decoder, ids, rows):
        ran.append(ids)
        return run_text(decoder, ids, rows)

    monkeypatch.setattr("legokv.build.calibration.run_text", run)
    first, second = (
        calibrate(checkpoint, config, [*PASSAGES, PASSAGES[0] * 40], "f", said.append)
        for _ in range(2)
    )
    assert first == second
    assert len(first.scales) == config.num_layers * 4
    assert max(map(len, ran)) == MOST_TEXT_TOKENS
    assert first.source == f"4 texts of {sum(map(len, ran[:4])):,} tokens"
    assert f"Calibrating FP8 over {first.source}" in said
    for name, most in largest_inputs(checkpoint, ran[:4]).items():
        assert first.scales[name] == torch.tensor(most / FP8_MOST).bfloat16().item()


def put_calibration(folder: Path, text: str) -> None:
    """The two files of an engine folder that say what its model was calibrated by."""
    folder.mkdir(exist_ok=True)
    (folder / CALIBRATION_FILE).write_text(text)
    fingerprint = calibrated_fingerprint("of this", text)
    (folder / FACTS_FILE).write_text(json.dumps({"fingerprint": fingerprint}))


def test_a_calibration_is_kept_for_its_model_alone_and_only_a_whole_one(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    config = read_model_config(tiny_checkpoint("llama"))
    names = [f"layers.{n}.{each}" for n in range(3) for each in ("qkv", "out", "gate_up", "down")]
    made = Calibration("of this", "2 texts", dict.fromkeys(names, 0.0625))
    other, mine = tmp_path / "other", tmp_path / "mine"
    for folder, text in ((other, "{damaged"), (mine, made.to_json())):
        put_calibration(folder, text)
    folders = (tmp_path / "none", other, mine)
    assert kept_calibration(folders, config, "of this") == made
    assert kept_calibration(folders, config, "of that") is None
    changes = ({"layers.2.down": 0.0}, {"layers.2.down": 1e300}, {"layers.3.down": 1.0})
    for odd in (
        {"model": "of this"},
        *(asdict(made) | {"scales": made.scales | c} for c in changes),
    ):
        put_calibration(mine, json.dumps(odd))
        assert kept_calibration(folders, config, "of this") is None
    put_calibration(mine, made.to_json())
    (mine / CALIBRATION_FILE).write_text(made.to_json().replace("0.0625", "0.0626", 1))
    assert kept_calibration(folders, config, "of this") is None, "changed since it was written"


def test_without_texts_or_with_inputs_that_are_none_there_is_no_calibration(
    tiny_checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint("llama")
    config = read_model_config(checkpoint)
    with pytest.raises(InvalidRequest, match="needs sample texts"):
        calibrate(checkpoint, config, (), "f", print)

    def broken(*_: object) -> dict[str, Tensor]:
        weights = load_weights(checkpoint, config, torch.bfloat16)
        weights["layers.1.down.weight"][3] = torch.inf
        return weights

    monkeypatch.setattr("legokv.build.calibration.load_weights", broken)
    with pytest.raises(UnsupportedModel, match=r"the inputs of layers\.2\.qkv are at most nan"):
        calibrate(checkpoint, config, PASSAGES, "f", print)


def test_an_fp8_checkpoint_is_an_engine_for_cpus_with_the_numbers_it_stands_for(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = fp8_checkpoint(tiny_checkpoint("llama"), tmp_path / "fp8", COMPRESSED)
    finished = build_engine(
        *("--checkpoint", folder, "--output", tmp_path / "e", "--backend", "torch", "--no-onnx")
    )
    assert finished.returncode == 0, finished.stderr
    stored = load_file(folder / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    expected = (stored[name].float() * stored[f"{name}_scale"].float()).bfloat16()
    engine = Engine.open(tmp_path / "e", settings=EngineSettings(runner="torch", pool_tokens=64))
    assert engine.facts.weights == "model"
    weights = load_weights(tmp_path / "e", engine.facts.model, torch.bfloat16)
    assert torch.equal(weights["layers.1.out.weight"], expected)
    ids = list(range(5, 40))
    meant = run_text(decoder_from_weights(engine.facts.model, weights), ids, [len(ids) - 1])[0]
    found = engine.prefill([ids]).logits
    assert (found - meant).abs().max() < 0.06 * meant.abs().max()
