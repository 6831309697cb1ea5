"""The calls a plan is built by, on a stand-in for the TensorRT that can't be installed here."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import tensorrt_standin
from tensorrt_standin import TensorRT, TensorRTLLM

from legokv.errors import PlanBuildFailed
from legokv.plan.builders import open_builder, plan_from_onnx, write_whole
from legokv.plan.llm import open_llm_builder
from legokv.plan.request import InputRange, PlanRequest, request_from_json

PREFILL = (
    InputRange("input_ids", (1,), (64,), (512,)),
    InputRange("pages", (1, 4), (2, 4), (8, 4)),
)
DECODE = (InputRange("input_ids", (1,), (2,), (8,)), InputRange("pages", (1, 4), (2, 4), (8, 4)))
CREATED = ["Builder", "create_network", "create_builder_config"]
FILLED = [
    "load_library",
    "parse_from_file",
    "set_preview_feature",
    "add_optimization_profile",
    "add_optimization_profile",
    "progress_monitor",
]


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> TensorRT:
    standin = TensorRT()
    monkeypatch.setitem(sys.modules, "tensorrt", standin)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_llm", TensorRTLLM(standin))  # type: ignore[arg-type]
    return standin


def request(tmp_path: Path, backend: str = "tensorrt", library: str = "plugins.so") -> PlanRequest:
    return PlanRequest(
        backend, "model.onnx", str(tmp_path / "a.plan"), library, "bfloat16", (PREFILL, DECODE)
    )


def ignore(phase: str, done: int, total: int) -> None:
    pass


def test_tensorrt_makes_the_calls_in_order_and_writes_the_plan(
    trt: TensorRT, tmp_path: Path
) -> None:
    summary = plan_from_onnx(open_builder("tensorrt"), request(tmp_path), ignore)
    assert trt.calls == [*CREATED, *FILLED, "build"]
    assert (tmp_path / "a.plan").read_bytes() == b"plan"
    assert summary.plugins == {"KvImport": 1, "LegoLinkAttention": 1}
    assert (summary.num_layers, summary.num_profiles, summary.plan_bytes) == (3, 2, 4)
    assert summary.version == tensorrt_standin.VERSION


def test_tensorrt_llm_builds_the_same_network_by_its_own_build_engine(
    trt: TensorRT, tmp_path: Path
) -> None:
    objects = open_llm_builder("bfloat16")
    summary = plan_from_onnx(objects, request(tmp_path, "tensorrt-llm"), ignore)
    assert trt.calls == [*CREATED, *FILLED, "build_engine", "build"]
    assert (tmp_path / "a.plan").read_bytes() == b"plan"
    assert str(summary).startswith("tensorrt-llm 10.14.1.48: 3 layers, of them 1 KvImport")


def test_flags_are_handed_to_the_builder_before_it_builds(trt: TensorRT, tmp_path: Path) -> None:
    asked = replace(request(tmp_path), flags=("weight_streaming", "refit"))
    plan_from_onnx(open_builder("tensorrt"), asked, ignore)
    at = trt.calls.index("set_flag WEIGHT_STREAMING")
    assert trt.calls[at + 1] == "set_flag REFIT"
    assert at < trt.calls.index("build")
    trt.serialized = None
    with pytest.raises(PlanBuildFailed, match=r"built no plan, with weight_streaming, with refit$"):
        plan_from_onnx(open_builder("tensorrt"), asked, ignore)


@pytest.mark.parametrize(
    ("before", "kept"),
    [
        (None, b""),
        (b"other build's, ", b"other build's, "),
        (b"another GPU", b""),
        (b"damaged", b""),
    ],
)
def test_what_an_earlier_build_timed_on_this_gpu_is_not_timed_again(
    trt: TensorRT, tmp_path: Path, before: bytes | None, kept: bytes
) -> None:
    timings = tmp_path / "older.timings"
    if before is not None:
        timings.write_bytes(before)
    asked = replace(
        request(tmp_path), timing_file=str(tmp_path / "a.timings"), timing_before=str(timings)
    )
    plan_from_onnx(open_builder("tensorrt"), asked, ignore)
    assert (tmp_path / "a.timings").read_bytes() == kept + b"timed"


LISTED = """Layers:
Name: node_attention, LayerType: PluginV3, Inputs: [ { Name: q, Location: Device, Dimensions: \
[-1,4,64], Datatype: BFloat16, Format: Row major }], Outputs: [ { Name: out, Location: Device, \
Dimensions: [-1,4,64], Datatype: BFloat16, Format: Row major }], PluginType: LegoLinkAttention, \
TacticValue: 0x0, StreamId: 0, Metadata: """.replace("\\\n", "")
INSPECTED = {
    "Layers": [
        {
            "Name": "node_attention",
            "LayerType": "PluginV3",
            "PluginType": "LegoLinkAttention",
            "Inputs": [{"Name": "q", "Dimensions": [-1, 4, 64], "Format/Datatype": "Row major"}],
            "Outputs": [],
        },
        "only a name",
    ]
}


@pytest.mark.parametrize(
    ("listed", "opens", "source", "names"),
    [
        (LISTED, True, "the builder's log", ["node_attention"]),
        (None, True, "the engine's inspector", ["node_attention", "only a name"]),
        (None, False, "the engine's inspector", []),
    ],
)
def test_a_plans_layers_are_those_of_the_log_or_of_the_inspector_where_it_opens(
    trt: TensorRT, tmp_path: Path, listed: str | None, opens: bool, source: str, names: list[str]
) -> None:
    trt.listed, trt.opens, trt.inspected = listed, opens, json.dumps(INSPECTED)
    file = tmp_path / "a.layers.json"
    asked = replace(request(tmp_path), layers_file=str(file), profile_names=("prefill", "decode"))
    summary = plan_from_onnx(open_builder("tensorrt"), asked, ignore)
    content = json.loads(file.read_text(encoding="utf-8"))
    assert (content["source"], [layer["name"] for layer in content["layers"]]) == (source, names)
    assert content["profiles"] == list(summary.layers)
    assert [line.partition(";")[0] for line in summary.layers] == (
        ["profile prefill: 1 LegoLinkAttention", "profile decode: "] if names else []
    )


@pytest.mark.parametrize("inspected", ["no JSON", '{"Layers": [{"Inputs": ["a name"]}]}'])
def test_a_list_of_layers_that_cannot_be_read_is_said_and_the_plan_is_built(
    trt: TensorRT, tmp_path: Path, capfd: pytest.CaptureFixture[str], inspected: str
) -> None:
    trt.listed, trt.opens, trt.inspected = None, True, inspected
    file = tmp_path / "a.layers.json"
    asked = replace(request(tmp_path), layers_file=str(file), profile_names=("prefill",))
    summary = plan_from_onnx(open_builder("tensorrt"), asked, ignore)
    assert (summary.layers, summary.plan_bytes > 0) == ((), True)
    assert json.loads(file.read_text(encoding="utf-8"))["layers"] == []
    assert "the plan's layers are not listed: " in capfd.readouterr().err


def test_tensorrt_llm_lists_no_layers(trt: TensorRT, tmp_path: Path) -> None:
    asked = replace(request(tmp_path, "tensorrt-llm"), layers_file=str(tmp_path / "a.layers.json"))
    assert plan_from_onnx(open_llm_builder("bfloat16"), asked, ignore).layers == ()
    assert not (tmp_path / "a.layers.json").exists()


def test_what_the_builder_warns_of_is_printed(
    trt: TensorRT, capfd: pytest.CaptureFixture[str]
) -> None:
    objects = open_builder("tensorrt")
    objects.logger.log(trt.ILogger.WARNING, "a tactic was skipped")
    objects.logger.log(trt.ILogger.VERBOSE, "a thousand details")
    assert capfd.readouterr().err == "TensorRT: a tactic was skipped\n"


def test_both_profiles_have_the_three_shapes_of_every_input(trt: TensorRT, tmp_path: Path) -> None:
    plan_from_onnx(open_builder("tensorrt"), request(tmp_path), ignore)
    pages = ((1, 4), (2, 4), (8, 4))
    assert trt.profiles == [
        {"input_ids": ((1,), (64,), (512,)), "pages": pages},
        {"input_ids": ((1,), (2,), (8,)), "pages": pages},
    ]


def test_progress_comes_from_tensorrts_monitor(trt: TensorRT, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    objects = open_builder("tensorrt")
    plan_from_onnx(objects, request(tmp_path), lambda *event: told.append(event))
    assert told == [("Building", 0, 2), ("Building", 1, 2)]


def test_deep_phases_are_not_reported(trt: TensorRT, tmp_path: Path) -> None:
    told: list[str] = []
    objects = open_builder("tensorrt")
    plan_from_onnx(objects, request(tmp_path), lambda phase, *_: told.append(phase))
    monitor = trt.config.monitor
    told.clear()
    for parent, phase in ((None, "a"), ("a", "b"), ("b", "c"), ("c", "d")):
        monitor.phase_start(phase, parent, 1)
    assert told == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("changes", "library", "words"),
    [
        ({"parses": False}, "plugins.so", "could not be parsed: error 0: no such operator"),
        ({"serialized": None}, "plugins.so", "TensorRT built no plan$"),
        ({"refused_profile": True}, "plugins.so", "refused the profile"),
        ({}, "none.so", "none.so gave TensorRT no plugins"),
    ],
)
def test_a_step_that_fails_is_named_and_leaves_no_file(
    trt: TensorRT, tmp_path: Path, changes: dict[str, object], library: str, words: str
) -> None:
    for name, value in changes.items():
        setattr(trt, name, value)
    objects = open_builder("tensorrt")
    with pytest.raises(PlanBuildFailed, match=words):
        plan_from_onnx(objects, request(tmp_path, library=library), ignore)
    assert list(tmp_path.iterdir()) == []


def test_a_plan_that_can_t_be_written_leaves_the_older_one(tmp_path: Path) -> None:
    plan = tmp_path / "a.plan"
    assert write_whole(plan, b"older") == 5
    with pytest.raises(TypeError):
        write_whole(plan, "not bytes")
    assert plan.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [plan]


def test_a_request_reads_back_as_it_was_written(tmp_path: Path) -> None:
    asked = replace(request(tmp_path), flags=("refit",), profile_names=("prefill", "decode"))
    assert request_from_json(asked.to_json()) == asked


def test_the_stand_in_has_no_name_that_tensorrt_rtx_lacks() -> None:
    real: ModuleType = pytest.importorskip("tensorrt_rtx_bindings")
    pairs = {
        "": (TensorRT, real),
        "Builder": (tensorrt_standin.Builder, real.Builder),
        "Config": (tensorrt_standin.Config, real.IBuilderConfig),
        "Network": (tensorrt_standin.Network, real.INetworkDefinition),
        "Parser": (tensorrt_standin.Parser, real.OnnxParser),
        "Profile": (tensorrt_standin.Profile, real.IOptimizationProfile),
        "Registry": (tensorrt_standin.Registry, real.IPluginRegistry),
        "Runtime": (tensorrt_standin.Runtime, real.Runtime),
    }
    own = {"note", "fill", "build"}  # the stand-in's own
    for where, (standin, module) in pairs.items():
        names = {name for name in vars(standin) if not name.startswith("_")} - own
        missing = {name for name in names if not hasattr(module, name)}
        assert not missing, f"{where}: {missing}"
