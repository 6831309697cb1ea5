"""One way from an ONNX file to a plan, for every TensorRT: plugins, parse, profiles, build."""

import os
import uuid
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from legokv.plan.plan_builder import PlanBuilder
from legokv.plan.progress import Report, progress_monitor
from legokv.plan.request import InputRange, PlanBuildFailed, PlanRequest, PlanSummary

PLUGIN_NAMESPACE = "legokv"


def plan_from_onnx(objects: PlanBuilder, request: PlanRequest, report: Report) -> PlanSummary:
    """Build `request.plan_file`, which appears whole or not at all; what the network has.

    PlanBuildFailed, with TensorRT's words where it has any, at the first step that fails.
    """
    _load_plugins(objects.trt, request.plugin_library)
    _parse(objects, request.model_file)
    # Lets a plugin write its pool in place: output and input are one address.
    objects.config.set_preview_feature(objects.trt.PreviewFeature.ALIASED_PLUGIN_IO_10_03, True)
    for ranges in request.profiles:
        _add_profile(objects, ranges)
    monitor = progress_monitor(objects.trt, report)
    objects.config.progress_monitor = monitor
    serialized = objects.serialize()
    if serialized is None:
        raise PlanBuildFailed("TensorRT built no plan")
    return PlanSummary(
        backend=request.backend,
        version=objects.trt.__version__,
        num_layers=objects.network.num_layers,
        plugins=plugin_counts(objects.trt, objects.network),
        num_profiles=objects.config.num_optimization_profiles,
        plan_bytes=write_whole(Path(request.plan_file), serialized),
    )


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
    found = [c.name for c in registry.all_creators if c.plugin_namespace == PLUGIN_NAMESPACE]
    if loaded is None or not found:
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
    for given in ranges:
        profile.set_shape(given.name, given.least, given.usual, given.most)
    if objects.config.add_optimization_profile(profile) < 0:
        raise PlanBuildFailed(f"TensorRT refused the profile {list(ranges)}")


def _plugin_name(trt: Any, layer: Any) -> str:
    # The way to a layer's own methods in TensorRT's Python: its class is changed in place.
    layer.__class__ = trt.IPluginV3Layer
    core = layer.plugin.get_capability_interface(trt.PluginCapabilityType.CORE)
    return str(core.plugin_name)
