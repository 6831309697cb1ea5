"""Real TensorRT-RTX plans, built without a GPU by the build script, read back in its own words."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from plan_builds import PLAN, settings_of

from legokv.build.engine import build_engine_folder, facts_from_checkpoint, with_plan
from legokv.built.folder import read_engine_folder
from legokv.built.plan_facts import WEIGHT_STREAMING
from legokv.built.plan_limits import PlanLimits, plan_profiles, scoring_profile
from legokv.checkpoint import load_weights
from legokv.errors import PlanBuildFailed
from legokv.export import export_scoring_onnx, onnx_file
from legokv.model.decoder import decoder_from_weights
from legokv.model.dtypes import Dtypes
from legokv.plan.process import build_plan
from legokv.plan.request import PlanFiles, PlanRequest, plan_request
from legokv.step.graph import IMPORTS, ImportBy, ScoringShape, graph_shape

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT-RTX is not installed")
SUMMARY = re.compile(
    r"tensorrt-rtx \S+: (\d+) layers, of them (?:(\d+) KvImport, )?(\d+) (\w+); "
    r"(\d+) profiles; (\S+) MiB"
)
LAYERS = "tensorrt-rtx.layers.json"
SCORING, SCORING_LAYERS = "tensorrt-rtx.scoring.plan", "tensorrt-rtx.scoring.layers.json"
Record = Callable[[str, object], None]
Built = Callable[..., tuple[Path, str]]


def summary_of(output: str) -> re.Match[str]:
    """The line in which a build says what the built network has."""
    found = SUMMARY.search(output)
    assert found is not None, output
    return found


def named_in(plan: bytes) -> dict[str, int]:
    """How often a plan's own bytes name each plugin: once or more for each of its layers."""
    names = ("KvImport", "LegoLinkAttention", "PackedLegoLinkAttention")
    return {name: plan.count(name.encode()) for name in names}


@pytest.mark.parametrize(
    ("name", "dtype", "imports"),
    [
        ("llama-wide", "bfloat16", "stream"),
        ("llama-wide", "float16", "plugin"),
        ("llama-wide", "float32", "stream"),
        ("qwen3-wide", "bfloat16", "plugin"),
    ],
)
def test_a_tiny_model_becomes_a_plan_with_the_plugins_of_its_imports_in_every_layer(
    built: Built, name: str, dtype: str, imports: str, record_property: Record
) -> None:
    output, said = built(name, dtype, imports)
    summary = summary_of(said)
    counts = [int(summary[number] or 0) for number in (2, 3, 5)]
    assert counts == [3 if imports == "plugin" else 0, 3, 3]
    assert int(summary[1]) > 100
    # Of Qwen3 norms stand between the product and attention.
    attention = "LegoLinkAttention" if name == "qwen3-wide" else "PackedLegoLinkAttention"
    assert summary[4] == attention
    content = (output / PLAN).read_bytes()
    assert summary[6] == f"{len(content) / 2**20:.1f}"
    named = named_in(content)
    assert named[attention] >= 3
    assert named["KvImport"] >= 3 if imports == "plugin" else named["KvImport"] == 0
    plan = read_engine_folder(output).plan
    assert plan is not None
    assert plan.import_by == imports
    size = f"a file of {len(content):,} bytes that names {named_in(content)}"
    record_property("fact", f"{name}, {dtype}: {summary[0]}, {size}")


def test_engine_json_records_the_plan_and_what_it_depends_on(
    built: Built, plugin_library: Path
) -> None:
    output, _ = built()
    facts = read_engine_folder(output)
    plan = facts.plan
    assert plan is not None
    assert (facts.backend, plan.flavour, plan.architecture) == ("tensorrt-rtx",) * 2 + ("any",)
    assert plan.library_sha256 == hashlib.sha256(plugin_library.read_bytes()).hexdigest()
    assert (output / plan.library_file).read_bytes() == plugin_library.read_bytes()
    assert [profile.name for profile in plan.profiles] == ["prefill", "decode", "link"]
    assert [profile.ranges["B"].most for profile in plan.profiles] == [5, 5, 5]
    assert (plan.scoring_file, plan.scored) == (SCORING, range(1))
    models = [f"{of}.onnx{data}" for of in ("model", "scoring") for data in ("", ".data")]
    plans = (PLAN, LAYERS, SCORING, SCORING_LAYERS)
    assert {file.name: file.size_bytes for file in facts.produced} == {
        name: (output / name).stat().st_size for name in (*models, *plans, plan.library_file)
    }


@pytest.mark.parametrize("imports", IMPORTS)
def test_a_build_lists_the_layers_of_its_plan_in_which_no_pool_is_copied(
    built: Built, imports: ImportBy, record_property: Record
) -> None:
    output, said = built("llama-wide", "bfloat16" if imports == "stream" else "float16", imports)
    listed = json.loads((output / LAYERS).read_text(encoding="utf-8"))
    *words, scoring = (line.strip() for line in said.splitlines() if line.startswith("  profile "))
    assert words == listed["profiles"]
    assert [scoring] == json.loads((output / SCORING_LAYERS).read_text())["profiles"]
    assert scoring == (
        "profile scoring: 1 PackedScoredAttention; between two attentions nothing; "
        "no copy of a pool"
    )
    assert [line.split(":")[0] for line in words] == [
        "profile prefill",
        "profile decode",
        "profile link",
    ]
    nodes = "3 PackedLegoLinkAttention"
    nodes = nodes if imports == "stream" else f"3 KvImport, {nodes}"
    for line in words:
        assert line.split(": ")[1].startswith(f"{nodes}; between two attentions 2 times "), line
        assert " kernels of 1 fused region (" in line
        assert "Slic" not in line, "q, k and v are copied apart"
        assert line.endswith("; no copy of a pool")
    plugins = [layer["plugin"] for layer in listed["layers"] if layer["kind"] == "PluginV3"]
    assert plugins.count("PackedLegoLinkAttention") == 3 * 3
    products = [layer for layer in listed["layers"] if layer["kind"] == "gemm"]
    assert products
    assert all("Row major" in tensor["format"] for each in products for tensor in each["inputs"])
    record_property("fact", f"llama-wide, imports by {imports}: {words[0]}")


def small_request(folder: Path, plan: Path, library: Path, flags: tuple[str, ...]) -> PlanRequest:
    facts = read_engine_folder(folder)
    assert facts.plan is not None
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size, facts.plan.import_by)
    files = PlanFiles(folder / "model.onnx", plan, library)
    return plan_request("tensorrt-rtx", graph, facts.plan.profiles[:1], files, flags)


def test_weights_that_are_to_be_streamed_build_without_a_gpu(
    built: Built, plugin_library: Path, tmp_path: Path
) -> None:
    plan = tmp_path / PLAN
    asked = small_request(built()[0], plan, plugin_library, (WEIGHT_STREAMING,))
    assert build_plan(asked, print).plan_bytes == plan.stat().st_size


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a build without a GPU says")
def test_a_plan_to_be_refitted_is_refused_without_a_gpu_in_tensorrt_rtx_s_words(
    built: Built, plugin_library: Path, tmp_path: Path
) -> None:
    plan = tmp_path / PLAN
    asked = small_request(built()[0], plan, plugin_library, ("refit",))
    with pytest.raises(PlanBuildFailed, match="built no plan, with refit; it had said:") as refused:
        build_plan(asked, print)
    assert "CUDA_SUCCESS" in str(refused.value)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_of_other_limits_is_another_and_one_of_the_same_is_kept(
    built: Built, plugin_library: Path, tiny_checkpoint: Callable[[str], Path]
) -> None:
    output, _ = built()
    checkpoint = tiny_checkpoint("llama-wide")
    same, other = (settings_of("llama-wide", plugin_library, max_sequences=n) for n in (5, 6))
    by_node = settings_of("llama-wide", plugin_library, imports="plugin")
    streamed = replace(same, flags=(WEIGHT_STREAMING,))
    assert not build_engine_folder(checkpoint, output, same)
    facts = facts_from_checkpoint(checkpoint, same)
    asked = (same, other, by_node, streamed)
    plans = [with_plan(facts, settings, plugin_library).plan for settings in asked]
    assert plans[0] == read_engine_folder(output).plan
    assert all(plan != plans[0] for plan in plans[1:])


@pytest.mark.parametrize("imports", IMPORTS)
def test_a_build_makes_a_plan_of_the_scoring_pass_too(
    built: Built, imports: ImportBy, record_property: Record
) -> None:
    """The same whatever imports pages: its graph has none of these nodes."""
    output, said = built("llama-wide", "bfloat16" if imports == "stream" else "float16", imports)
    summary = next(
        line for line in said.splitlines() if "1 PackedScoredAttention; 1 profile;" in line
    )
    content = (output / SCORING).read_bytes()
    assert summary.endswith(f"{len(content) / 2**20:.1f} MiB")
    assert content.count(b"ScoredAttention") >= 1
    assert content.count(b"KvImport") == 0
    record_property("fact", f"the scoring pass of llama-wide: {summary.strip()}")


def test_a_scoring_pass_of_several_layers_is_a_plan_of_both_attentions(
    plugin_library: Path,
    tiny_engine_folder: Callable[[str], Path],
    tmp_path: Path,
    record_property: Record,
) -> None:
    folder = tiny_engine_folder("llama-wide")
    facts = read_engine_folder(folder)
    weights = load_weights(folder, facts.model, torch.bfloat16)
    shape = ScoringShape(graph_shape(facts.model, Dtypes.same("bfloat16"), 16), range(1, 3))
    model = export_scoring_onnx(decoder_from_weights(facts.model, weights), shape, tmp_path)
    prefill, *_ = plan_profiles(facts.model, shape.graph, PlanLimits(256, 5, 8))
    profiles = [scoring_profile(prefill)]
    files = PlanFiles(model, tmp_path / "scoring.plan", plugin_library)
    summary = build_plan(plan_request("tensorrt-rtx", shape, profiles, files), print)
    assert summary.plugins == {"PackedLegoLinkAttention": 1, "PackedScoredAttention": 2}
    assert summary.num_profiles == 1
    assert files.plan.read_bytes().count(b"ScoredAttention") >= 2
    record_property("fact", f"the scoring pass of llama-wide: {summary}")


def test_smollm2_becomes_a_plan(
    plugin_library: Path, smollm2_engine_folder: Path, tmp_path: Path, record_property: Record
) -> None:
    # Exported here: the folder may be there from before with what an older exporter made.
    facts = read_engine_folder(smollm2_engine_folder)
    graph = graph_shape(facts.model, facts.dtypes, facts.page_size, "plugin")
    weights = load_weights(smollm2_engine_folder, facts.model, torch.bfloat16)
    model = onnx_file.export_onnx(decoder_from_weights(facts.model, weights), graph, tmp_path)
    plan = tmp_path / PLAN
    profiles = plan_profiles(facts.model, graph, PlanLimits())
    files = PlanFiles(model, plan, plugin_library)
    said: list[str] = []
    summary = build_plan(plan_request("tensorrt-rtx", graph, profiles, files), said.append)
    progress = [line for line in said if re.fullmatch(r"  .+: \d+ of \d+", line)]
    weight_bytes = model.with_name("model.onnx.data").stat().st_size
    record_property("fact", f"SmolLM2: model.onnx.data of {weight_bytes:,} bytes; {summary}")
    assert summary.plugins == {"KvImport": 30, "PackedLegoLinkAttention": 30}
    assert summary.num_layers > 1000
    assert summary.num_profiles == 3
    assert progress, f"a build of seconds said nothing of how far it was: {said}"
    assert all(count >= 30 for count in named_in(plan.read_bytes()).values())
    # 134.5 million parameters of two bytes, the tied embedding once.
    assert 269e6 < weight_bytes < 270e6
    assert 269e6 < plan.stat().st_size == summary.plan_bytes < 400e6
