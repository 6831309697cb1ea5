"""An ONNX file becomes a plan, by the builder, network and config of any TensorRT."""

import importlib
import os
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from legokv.errors import PlanBuildFailed
from legokv.plan.layers import (
    PlanLayer,
    layers_from_inspector,
    layers_from_log,
    layers_report,
    short_words,
)
from legokv.plan.request import InputRange, PlanRequest, PlanSummary


@dataclass(frozen=True)
class PlanBuilder:
    """`trt` is the module; builder, network and config are its IBuilder, INetworkDefinition,
    IBuilderConfig. `serialize` builds the network: bytes-like, or None if it failed. `lists` is
    where the logger puts what the builder says of layers; without one a plan has no report."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    config: Any
    serialize: Callable[[], Any]
    lists: list[str] | None = None


def strongly_typed_builder(trt: Any) -> PlanBuilder:
    """The objects as TensorRT and TensorRT-RTX create them, for a network that keeps its types."""
    lists: list[str] = []
    logger = build_log(trt, lists)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    config = builder.create_builder_config()
    return PlanBuilder(
        trt,
        logger,
        builder,
        network,
        config,
        serialize=lambda: builder.build_serialized_network(network, config),
        lists=lists,
    )


def build_log(trt: Any, lists: list[str]) -> Any:
    """A logger that puts lists of layers into `lists`, and warnings and worse on standard error."""
    loud = (trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING)

    class BuildLog(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, msg: str) -> None:
            if severity in loud:
                print(f"TensorRT: {msg}", file=sys.stderr, flush=True)
            elif msg.startswith("Layers:"):
                lists.append(msg)

    return BuildLog()


Report = Callable[[str, int, int], None]
"""(phase, steps done, steps in all)"""

# Phases deeper than this come by the thousand, one for each tensor.
MAX_DEPTH = 2


def progress_monitor(trt: Any, report: Report) -> Any:
    """An IProgressMonitor that reports the outer phases; the builder must not outlive it."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases(report)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.step(phase_name, step)
            return True

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

    return Monitor()


class Phases:
    """The phases that are under way, each with its depth and its number of steps."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._open: dict[str, tuple[int, int]] = {}

    def start(self, name: str, parent: str | None, num_steps: int) -> None:
        depth = self._open[parent][0] + 1 if parent in self._open else 0
        self._open[name] = (depth, num_steps)
        self._tell(name, 0)

    def step(self, name: str, step: int) -> None:
        self._tell(name, step + 1)

    def finish(self, name: str) -> None:
        self._open.pop(name, None)

    def _tell(self, name: str, done: int) -> None:
        depth, num_steps = self._open.get(name, (MAX_DEPTH + 1, 0))
        if depth <= MAX_DEPTH:
            self._report(name, done, num_steps)


PLUGIN_NAMESPACE = "legokv"


def plan_from_onnx(objects: PlanBuilder, request: PlanRequest, report: Report) -> PlanSummary:
    """Build `request.plan_file`, which appears whole or not at all; what the network has.

    Beside it appear the list of its layers and TensorRT's timings, where the request names files
    for them. PlanBuildFailed, with TensorRT's words where it has any, at the first step that fails.
    """
    _load_plugins(objects.trt, request.plugin_library)
    _parse(objects, request.model_file)
    # Lets a plugin write its pool in place: output and input are one address.
    objects.config.set_preview_feature(objects.trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    objects.config.profiling_verbosity = objects.trt.ProfilingVerbosity.DETAILED
    for flag in request.flags:
        objects.config.set_flag(getattr(objects.trt.BuilderFlag, flag.upper()))
    for ranges in request.profiles:
        _add_profile(objects, ranges)
    if request.timing_file:
        _take_timings(objects.config, Path(request.timing_before))
    monitor = progress_monitor(objects.trt, report)
    objects.config.progress_monitor = monitor
    serialized = objects.serialize()
    if serialized is None:
        flags = "".join(f", with {flag}" for flag in request.flags)
        raise PlanBuildFailed(f"TensorRT built no plan{flags}")
    if request.timing_file:
        timings = objects.config.get_timing_cache().serialize()
        write_whole(Path(request.timing_file), timings)
    return PlanSummary(
        backend=request.backend,
        version=objects.trt.__version__,
        num_layers=objects.network.num_layers,
        plugins=plugin_counts(objects.trt, objects.network),
        num_profiles=objects.config.num_optimization_profiles,
        plan_bytes=write_whole(Path(request.plan_file), serialized),
        layers=_list_layers(objects, request, serialized),
    )


def _take_timings(config: Any, before: Path) -> None:
    """Time anew only what the build before has not timed on the same GPU."""
    content = before.read_bytes() if before.is_file() else b""
    cache = config.create_timing_cache(content)
    if cache is None or not config.set_timing_cache(cache, False):
        # Of another GPU or version, or damaged.
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _list_layers(objects: PlanBuilder, request: PlanRequest, plan: Any) -> tuple[str, ...]:
    """Write the list of the plan's layers; the short words of it, none where nobody lists them.

    What can't be listed is said and left out: the plan is good without.
    """
    if objects.lists is None or not request.layers_file:
        return ()
    source, layers = "the builder's log", layers_from_log(objects.lists)
    lines: list[str] = []
    try:
        if not layers:
            source, layers = "the engine's inspector", _inspected(objects, plan)
        lines = short_words(layers, request.profile_names)
    except Exception as error:  # noqa: BLE001 - TensorRT may name anything anew
        layers = ()
        words = f"{type(error).__name__}: {error}"
        print(f"the plan's layers are not listed: {words}", file=sys.stderr, flush=True)
    content = layers_report(source, lines, layers)
    write_whole(Path(request.layers_file), content.encode())
    return tuple(lines)


def _inspected(objects: PlanBuilder, plan: Any) -> tuple[PlanLayer, ...]:
    """What the inspector of the opened plan says, nothing where the plan does not open here."""
    trt = objects.trt
    runtime = trt.Runtime(objects.logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return ()
    inspector = engine.create_engine_inspector()
    return layers_from_inspector(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def plugin_counts(trt: Any, network: Any) -> dict[str, int]:
    """How many layers of a network are which plugin, by the name each plugin gives itself."""
    layers = (network.get_layer(number) for number in range(network.num_layers))
    plugins = [layer for layer in layers if layer.type == trt.LayerType.PLUGIN_V3]
    return dict(Counter(_plugin_name(trt, layer) for layer in plugins))


def write_whole(path: Path, content: Any) -> int:
    """Write bytes to `path` by way of a temporary name beside it; how many."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with temporary.open("xb") as file:
            num_bytes = file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return num_bytes


def _load_plugins(trt: Any, library: str) -> None:
    registry = trt.get_plugin_registry()
    loaded = registry.load_library(library)
    creators = [c.name for c in registry.all_creators if c.plugin_namespace == PLUGIN_NAMESPACE]
    if loaded is None or not creators:
        raise PlanBuildFailed(
            f"{library} gave TensorRT no plugins: build it again with build/build_plugins.py"
        )


def _parse(objects: PlanBuilder, model_file: str) -> None:
    parser = objects.trt.OnnxParser(objects.network, objects.logger)
    if not parser.parse_from_file(model_file):
        reasons = "; ".join(str(parser.get_error(n)) for n in range(parser.num_errors))
        raise PlanBuildFailed(f"{model_file} could not be parsed: {reasons}")


def _add_profile(objects: PlanBuilder, ranges: Iterable[InputRange]) -> None:
    profile = objects.builder.create_optimization_profile()
    for item in ranges:
        profile.set_shape(item.name, item.least, item.usual, item.most)
    if objects.config.add_optimization_profile(profile) < 0:
        raise PlanBuildFailed(f"TensorRT refused the profile {list(ranges)}")


def _plugin_name(trt: Any, layer: Any) -> str:
    # The way to a layer's own methods in TensorRT's Python: its class is changed in place.
    layer.__class__ = trt.IPluginV3Layer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return str(core.plugin_name)


LIBRARIES = "tensorrt_rtx_libs"
PLAIN_NAME = "libtensorrt_rtx.so"


def open_builder(module: str) -> PlanBuilder:
    """The builder, network and config of TensorRT's Python module of that name."""
    return strongly_typed_builder(importlib.import_module(module))


def environment_with_library(folder: Path, environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` for a process that may parse plugins; a link is put into `folder`.

    The parser opens libtensorrt_rtx.so when it adds a plugin, the wheel has libtensorrt_rtx.so.1
    only, and the loader reads LD_LIBRARY_PATH at a process's start. Unchanged where the libraries
    are not a wheel's. PlanBuildFailed if LD_LIBRARY_PATH can't hold the folder's name.
    """
    spec = find_spec(LIBRARIES)
    if spec is None or not spec.submodule_search_locations:
        return dict(environment)
    libraries = Path(next(iter(spec.submodule_search_locations)))
    versioned = next(iter(sorted(libraries.glob(f"{PLAIN_NAME}.*"))), None)
    if versioned is None:
        return dict(environment)
    if os.pathsep in str(folder):
        raise PlanBuildFailed(
            f"a plan can't be built below {folder}, as LD_LIBRARY_PATH must name a folder there: "
            f"choose an --output without '{os.pathsep}'"
        )
    (folder / PLAIN_NAME).symlink_to(versioned)
    before = environment.get("LD_LIBRARY_PATH")
    path = os.pathsep.join([str(folder), str(libraries), *([before] if before else [])])
    return {**environment, "LD_LIBRARY_PATH": path}
