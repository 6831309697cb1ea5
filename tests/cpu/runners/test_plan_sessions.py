"""How a plan is opened and its steps executed, on a stand-in for TensorRT's runtime.

No plan has run here: that needs a GPU. What is held is which calls are made, in what order, with
what arguments.
"""

import inspect
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorrt_runtime_standin import Device, cuda_stream, llm_runtime, tensorrt_module

from legokv.built.plan_facts import PlanFacts
from legokv.built.plan_limits import DECODE, LINK, PREFILL, PlanLimits
from legokv.errors import EngineMismatch, OutOfMemory, StepFailed
from legokv.runners.plan import contexts, sessions
from legokv.runners.plan.contexts import PlanSession, addresses
from legokv.runners.plan.sessions import LLMSession, ScoringFile, TensorRTSession, open_plan

OPENED = ["0: created STATIC", "0: profile 0", "1: created ON_PROFILE_CHANGE", "1: profile 1"]
POOL, BLOCK = torch.zeros(4, 2), torch.zeros(3, 2)


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def stream(device: Device, monkeypatch: pytest.MonkeyPatch) -> Any:
    return cuda_stream(device, monkeypatch)


def open_tensorrt(
    device: Device, stream: Any, *, rtx: bool = False, num_profiles: int = 2
) -> PlanSession:
    return TensorRTSession(tensorrt_module(device, rtx=rtx), b"plan", stream, num_profiles)


def open_llm(device: Device, stream: Any, *, num_profiles: int = 2) -> PlanSession:
    module = tensorrt_module(device, rtx=False)
    return LLMSession(llm_runtime(device), module, b"plan", stream, num_profiles)


IDS = torch.zeros(16, dtype=torch.int32)


def step(session: PlanSession, profile: int, num_tokens: int = 2) -> None:
    inputs = {"input_ids": IDS[:num_tokens], "pool_0": POOL, "import_block_0": BLOCK[:0]}
    session.run(profile, inputs, {"pool_out_0": POOL})


def calls_of(
    device: Device, session: PlanSession, num_tokens: int, profile: int = DECODE
) -> list[str]:
    """What one step calls between waiting for torch's stream and waiting for its end."""
    before = len(device.calls)
    step(session, profile, num_tokens)
    first, *made, last = device.calls[before:]
    assert (first, last) == ("wait", "synchronize")
    return made


def test_a_view_without_elements_has_the_address_of_its_buffer() -> None:
    assert addresses({"a": BLOCK[:0], "b": BLOCK[1:]}) == {
        "a": BLOCK.data_ptr(),
        "b": BLOCK.data_ptr() + 8,
    }


def test_tensorrt_has_a_context_of_its_own_for_each_profile(device: Device, stream: Any) -> None:
    session = open_tensorrt(device, stream)
    assert device.calls == OPENED
    step(session, PREFILL, 5)
    assert device.calls[4:] == ["wait", "0: execute", "synchronize"]
    context = device.contexts[0]
    assert context.shapes == {"input_ids": (5,), "pool_0": (4, 2), "import_block_0": (0, 2)}
    assert context.addresses["pool_0"] == context.addresses["pool_out_0"] == POOL.data_ptr()
    assert device.contexts[1].shapes == {}


def test_rtx_captures_decode_steps_itself(device: Device, stream: Any) -> None:
    session = open_tensorrt(device, stream, rtx=True)
    assert device.calls[2:] == ["1: created WHOLE_GRAPH_CAPTURE", "1: profile 1"]
    assert [calls_of(device, session, 2) for _ in range(3)] == [["1: execute"]] * 3


@pytest.mark.parametrize("opened", [open_tensorrt, open_llm])
def test_a_decode_step_of_the_last_ones_shape_is_captured_and_then_replayed(
    device: Device, stream: Any, opened: Any
) -> None:
    session = opened(device, stream)
    assert calls_of(device, session, 2) == ["1: execute"]
    assert calls_of(device, session, 2) == [
        "2: created ON_PROFILE_CHANGE",
        "2: profile 1",
        "2: execute",
        "synchronize",
        "capture",
        "2: record",
    ]
    assert device.contexts[2].shapes["input_ids"] == (2,)
    assert device.contexts[2].addresses["pool_out_0"] == POOL.data_ptr()
    for _ in range(2):
        assert calls_of(device, session, 2) == ["on the stream", "replay of [2]"]


@pytest.mark.parametrize("opened", [open_tensorrt, open_llm])
def test_links_have_graphs_of_their_own_beside_those_of_decodes(
    device: Device, stream: Any, opened: Any
) -> None:
    session = opened(device, stream, num_profiles=3)
    assert device.calls[-2:] == ["2: created ON_PROFILE_CHANGE", "2: profile 2"]
    assert calls_of(device, session, 16, LINK) == ["2: execute"]
    # Decodes between two links of a shape: these still come one after the other.
    assert calls_of(device, session, 2) == ["1: execute"]
    assert calls_of(device, session, 16, LINK) == [
        "3: created ON_PROFILE_CHANGE",
        "3: profile 2",
        "3: execute",
        "synchronize",
        "capture",
        "3: record",
    ]
    assert calls_of(device, session, 16, LINK) == ["on the stream", "replay of [3]"]
    assert calls_of(device, session, 2)[0] == "4: created ON_PROFILE_CHANGE"


def test_how_many_weights_stay_on_the_gpu_is_settled_before_a_context_is_made(
    device: Device, stream: Any
) -> None:
    device.streamable_bytes = 10
    open_tensorrt(device, stream)
    assert device.calls == ["5 bytes of weights stay", *OPENED]


def test_rtx_captures_links_itself(device: Device, stream: Any) -> None:
    session = open_tensorrt(device, stream, rtx=True, num_profiles=3)
    assert device.calls[4:] == ["2: created WHOLE_GRAPH_CAPTURE", "2: profile 2"]
    assert calls_of(device, session, 16, LINK) == ["2: execute"]


def test_a_context_is_told_of_its_pools_once_and_of_shapes_that_change(
    device: Device, stream: Any
) -> None:
    session = open_tensorrt(device, stream)
    context = device.contexts[PREFILL]
    told = []
    for num_tokens in (5, 5, 7):
        context.told.clear()
        step(session, PREFILL, num_tokens)
        told.append(list(context.told))
    names = ["input_ids", "pool_0", "import_block_0"]
    assert told == [[*names, *names, "pool_out_0"], [], ["input_ids"]]
    # What is refused is asked again.
    device.refuses = "shape"
    for _ in range(2):
        with pytest.raises(StepFailed, match=r"refused the shape \(3,\) of input_ids"):
            step(session, PREFILL, 3)


def test_torch_s_own_capture_takes_what_the_stand_in_does() -> None:
    ours = {"cuda_graph", "stream", "capture_error_mode"}
    assert ours <= set(inspect.signature(torch.cuda.graph.__init__).parameters)


def test_each_shape_has_a_graph_and_a_context_that_no_other_step_touches(
    device: Device, stream: Any
) -> None:
    session = open_tensorrt(device, stream)
    for num_tokens in (2, 2, 3, 3):
        step(session, DECODE, num_tokens)
    assert [context.shapes["input_ids"] for context in device.contexts[2:]] == [(2,), (3,)]
    assert calls_of(device, session, 4) == ["1: execute"]
    assert calls_of(device, session, 2)[-1] == "replay of [2]"
    assert calls_of(device, session, 3)[-1] == "replay of [3]"


def test_the_graph_unused_for_longest_makes_room(
    device: Device, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contexts, "MAX_GRAPHS", 2)
    session = open_tensorrt(device, stream)
    for num_tokens in (1, 1, 2, 2, 1, 3, 3):
        step(session, DECODE, num_tokens)
    assert calls_of(device, session, 1)[-1] == "replay of [2]"
    assert calls_of(device, session, 3)[-1] == "replay of [4]"
    assert calls_of(device, session, 2) == ["1: execute"]


def test_where_a_capture_fails_decoding_goes_on_and_it_is_tried_again_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(contexts, "RETRY_STEPS", 3)
    device = Device(refuses="record")
    session = open_tensorrt(device, cuda_stream(device, monkeypatch))
    step(session, DECODE)
    assert calls_of(device, session, 2)[-2:] == ["capture", "2: record"]
    assert "none is for 3 steps: TensorRT refused to execute a step" in caplog.text
    assert [calls_of(device, session, 2) for _ in range(2)] == [["1: execute"]] * 2
    assert calls_of(device, session, 2)[-2:] == ["capture", "3: record"]
    assert "none is for 6 steps" in caplog.text
    device.refuses = ""
    assert [calls_of(device, session, 2) for _ in range(5)] == [["1: execute"]] * 5
    assert calls_of(device, session, 2)[-2:] == ["capture", "4: record"]
    assert calls_of(device, session, 2) == ["on the stream", "replay of [4]"]


@pytest.mark.parametrize("opened", [open_tensorrt, open_llm])
def test_without_memory_for_another_context_steps_go_on_without_a_graph(
    device: Device, stream: Any, caplog: pytest.LogCaptureFixture, opened: Any
) -> None:
    session = opened(device, stream)
    step(session, DECODE)
    device.refuses = "created"
    assert calls_of(device, session, 2) == ["2: created ON_PROFILE_CHANGE", "1: execute"]
    assert calls_of(device, session, 2) == ["1: execute"]
    assert "none is for 64 steps: TensorRT made no execution context" in caplog.text


def test_a_plan_of_one_profile_has_one_context(device: Device, stream: Any) -> None:
    session = open_tensorrt(device, stream, num_profiles=1)
    assert device.calls == OPENED[:2]
    assert calls_of(device, session, 5, PREFILL) == ["0: execute"]


class Registry:
    """A process' plugin registry: TensorRT gives None for what it has already, too."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.loads = True

    def load_library(self, plugin_path: str) -> object | None:
        self.asked.append(plugin_path)
        return object() if self.loads and len(self.asked) == 1 else None


@pytest.fixture
def registry(device: Device, stream: Any, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """That of a TensorRT whose plans open on the stand-in's device."""
    registry, module = Registry(), tensorrt_module(device, rtx=True)
    module.get_plugin_registry = lambda: registry
    monkeypatch.setattr(sessions, "_imported", lambda name: module)
    monkeypatch.setattr(sessions, "_loaded", {})
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (100 << 20, 200 << 20))
    return registry


PLAN = PlanFacts(
    "tensorrt-rtx", "1.7", "any", "main.plan", "plugins.so", "ab12", PlanLimits(), (),
    scoring_file="scoring.plan", scoring_layers=(0,),
)  # fmt: skip


def test_plugins_are_loaded_once_in_a_process_and_serve_all_plans_of_their_library(
    registry: Registry, device: Device, tmp_path: Path
) -> None:
    for _ in range(2):
        open_plan(tmp_path, PLAN, BytesIO(b"plan"), 1)
    assert len(device.contexts) == 2
    other = replace(PLAN, library_sha256="cd34")
    with pytest.raises(EngineMismatch, match=r"plugins of another library than .*plugins\.so in"):
        open_plan(tmp_path, other, BytesIO(b"plan"), 1)


def test_plugins_that_do_not_load_are_a_mismatch(registry: Registry, tmp_path: Path) -> None:
    registry.loads = False
    with pytest.raises(EngineMismatch, match=r"could not load the plugins of .*plugins\.so"):
        open_plan(tmp_path, PLAN, BytesIO(b"plan"), 1)


def test_the_scoring_plan_that_opens_is_the_one_of_the_start_whatever_is_built_meanwhile(
    registry: Registry, device: Device, tmp_path: Path
) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    (folder / "scoring.plan").write_bytes(b"plan")
    open_plan(folder, PLAN, BytesIO(b"plan"), 1)
    held = ScoringFile(folder, PLAN)
    folder.rename(tmp_path / "replaced")
    folder.mkdir()
    (folder / "scoring.plan").write_bytes(b"another build's")
    assert len(device.contexts) == 1
    session = held.open()
    assert calls_of(device, session, 5, PREFILL) == ["1: execute"]
    # Nor are that build's plugins looked at.
    assert registry.asked == [str(folder / "plugins.so")]


def test_a_plan_file_that_is_gone_since_the_folder_was_checked_is_a_mismatch(
    tmp_path: Path,
) -> None:
    words = r"/scoring\.plan cannot be read: No such file or directory; build the engine again"
    with pytest.raises(EngineMismatch, match=words):
        ScoringFile(tmp_path, PLAN)


@pytest.mark.parametrize("flags", [(), ("weight_streaming",)])
def test_a_scoring_plan_that_finds_no_room_is_not_tried_unless_its_weights_are_streamed(
    registry: Registry,
    device: Device,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    flags: tuple[str, ...],
) -> None:
    with (tmp_path / "scoring.plan").open("wb") as file:
        file.truncate(101 << 20)
    held = ScoringFile(tmp_path, replace(PLAN, flags=flags))
    monkeypatch.setattr(sessions, "open_plan", lambda *of, **named: "opened")
    if flags:
        assert held.open() == "opened"  # type: ignore[comparison-overlap]
        return
    words = r"takes 101 MiB of the GPU's memory, of which 100 MiB are free: take a mode without"
    with pytest.raises(OutOfMemory, match=words):
        held.open()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (101 << 20, 200 << 20))
    assert held.open() == "opened"  # type: ignore[comparison-overlap]


def test_a_plan_of_tensorrt_llm_that_streams_weights_is_refused(
    device: Device, stream: Any
) -> None:
    device.streamable_bytes = 10
    with pytest.raises(EngineMismatch, match=r"streams weights.*build without --weight-streaming"):
        open_llm(device, stream)


def test_tensorrt_llm_prefills_by_its_own_session_and_decodes_under_the_second_profile(
    device: Device, stream: Any
) -> None:
    session = open_llm(device, stream)
    assert device.calls == OPENED
    step(session, PREFILL, 5)
    assert device.calls[4:] == ["wait", "0: execute", "synchronize"]
    assert device.contexts[0].shapes["input_ids"] == (5,)
    assert calls_of(device, session, 2) == ["1: execute"]
    assert device.contexts[1].shapes["input_ids"] == (2,)


@pytest.mark.parametrize("rtx", [False, True])
def test_a_plan_the_runtime_refuses_is_a_mismatch(
    monkeypatch: pytest.MonkeyPatch, rtx: bool
) -> None:
    for device, words in (
        (Device(opens=False), "could not open the plan: this GPU is not supported"),
        (Device(refuses="created"), "made no execution context"),
        (Device(refuses="profile 0"), "no optimisation profile number 0"),
        (Device(refuses="profile 1"), "no optimisation profile number 1"),
    ):
        with pytest.raises(EngineMismatch, match=words):
            open_tensorrt(device, cuda_stream(device, monkeypatch), rtx=rtx)


@pytest.mark.parametrize("opened", [open_tensorrt, open_llm])
@pytest.mark.parametrize("profile", [PREFILL, DECODE])
@pytest.mark.parametrize("refuses", ["shape", "execute"])
def test_a_step_the_runtime_refuses_is_that_steps_failure(
    monkeypatch: pytest.MonkeyPatch, opened: Any, profile: int, refuses: str
) -> None:
    device = Device(refuses=refuses)
    session = opened(device, cuda_stream(device, monkeypatch))
    with pytest.raises(StepFailed, match="refused"):
        step(session, profile)


def test_an_address_the_runtime_refuses_names_the_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    device = Device(refuses="address")
    session = open_tensorrt(device, cuda_stream(device, monkeypatch))
    with pytest.raises(StepFailed, match="refused the address of input_ids"):
        step(session, DECODE)
