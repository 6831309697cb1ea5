"""Stands in for `tensorrt` and `tensorrt_llm` where they can't be installed: checks what is called.

It has the calls that building makes and nothing else, notes their order, and fails on an argument
that TensorRT would not take. `test_standin_signatures.py` compares its methods with TensorRT-RTX's.
"""

from enum import IntEnum
from types import SimpleNamespace
from typing import Any

VERSION = "10.14.1.48"


class Logger:
    WARNING = 2

    def __init__(self, severity: int) -> None:
        assert severity == self.WARNING


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self.is_made = True

    def log(self, severity: int, msg: str) -> None:
        raise NotImplementedError


class BuilderFlag(IntEnum):
    REFIT = 2
    WEIGHT_STREAMING = 22


class ProfilingVerbosity(IntEnum):
    DETAILED = 1


class LayerInformationFormat(IntEnum):
    JSON = 1


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"timed"


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class PreviewFeature(IntEnum):
    ALIASED_PLUGIN_IO_10_03 = 5


class LayerType(IntEnum):
    ELEMENTWISE = 4
    PLUGIN_V3 = 48


class PluginCapabilityType(IntEnum):
    CORE = 0


class IPluginV3Layer:
    def __init__(self, name: str) -> None:
        self.type = LayerType.PLUGIN_V3
        core = SimpleNamespace(plugin_name=name)
        self.plugin = SimpleNamespace(get_capability_interface=lambda kind: core)


class IProgressMonitor:
    def __init__(self) -> None:
        self.initialised = True


class TensorRT:
    """The module `tensorrt`, with one network that has one of each plugin in it after parsing."""

    __version__ = VERSION
    Logger = Logger
    NetworkDefinitionCreationFlag = NetworkDefinitionCreationFlag
    PreviewFeature = PreviewFeature
    LayerType = LayerType
    PluginCapabilityType = PluginCapabilityType
    IPluginV3Layer = IPluginV3Layer
    IProgressMonitor = IProgressMonitor
    ILogger = ILogger
    BuilderFlag = BuilderFlag
    ProfilingVerbosity = ProfilingVerbosity
    LayerInformationFormat = LayerInformationFormat

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.profiles: list[dict[str, tuple[Any, Any, Any]]] = []
        self.parses = True
        self.serialized: bytes | None = b"plan"
        self.refused_profile = False
        self.config: Any = None
        self.logger: Any = None
        self.listed: str | None = None  # what the builder logs of its layers
        self.inspected = '{"Layers": []}'
        self.opens = True

    def note(self, call: str) -> None:
        self.calls.append(call)

    def get_plugin_registry(self) -> Any:
        return Registry(self)

    def Builder(self, logger: Logger | ILogger) -> Any:
        assert isinstance(logger, Logger | ILogger)
        self.note("Builder")
        self.logger = logger
        return Builder(self)

    def OnnxParser(self, network: Any, logger: Logger | ILogger) -> Any:
        assert isinstance(network, Network)
        assert isinstance(logger, Logger | ILogger)
        return Parser(self, network)

    def Runtime(self, logger: ILogger) -> Any:
        assert logger is self.logger
        return Runtime(self)


class Runtime:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        assert serialized_engine == self._trt.serialized
        return CudaEngine(self._trt) if self._trt.opens else None


class CudaEngine:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt

    def create_engine_inspector(self) -> Any:
        return EngineInspector(self._trt)


class EngineInspector:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt

    def get_engine_information(self, format: LayerInformationFormat) -> str:
        assert format == LayerInformationFormat.JSON
        return self._trt.inspected


class Registry:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.all_creators = [
            SimpleNamespace(name="SomethingElse", plugin_namespace=""),
        ]

    def load_library(self, plugin_path: str) -> object | None:
        assert isinstance(plugin_path, str)
        self._trt.note("load_library")
        if plugin_path == "none.so":
            return None
        self.all_creators += [
            SimpleNamespace(name=name, plugin_namespace="legokv")
            for name in ("KvImport", "LegoLinkAttention")
        ]
        return object()


class Network:
    def __init__(self) -> None:
        self._layers: list[Any] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_layer(self, index: int) -> Any:
        return self._layers[index]

    def fill(self) -> None:
        plain = SimpleNamespace(type=LayerType.ELEMENTWISE)
        self._layers += [plain, IPluginV3Layer("KvImport"), IPluginV3Layer("LegoLinkAttention")]


class Config:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.monitor: IProgressMonitor | None = None
        self.profiling_verbosity: ProfilingVerbosity | None = None
        self.timing_cache: TimingCache | None = None

    def set_flag(self, flag: BuilderFlag) -> None:
        self._trt.note(f"set_flag {flag.name}")

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        damaged = serialized_timing_cache == b"damaged"
        return None if damaged else TimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        assert ignore_mismatch is False, "timings of another GPU say nothing of this one"
        if cache.content.startswith(b"another GPU"):
            return False
        self.timing_cache = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing_cache

    def set_preview_feature(self, feature: PreviewFeature, enable: bool) -> None:
        assert feature == PreviewFeature.ALIASED_PLUGIN_IO_10_03
        assert enable is True
        self._trt.note("set_preview_feature")

    def add_optimization_profile(self, profile: "Profile") -> int:
        self._trt.note("add_optimization_profile")
        self._trt.profiles.append(profile.shapes)
        return -1 if self._trt.refused_profile else len(self._trt.profiles) - 1

    @property
    def num_optimization_profiles(self) -> int:
        return len(self._trt.profiles)

    @property
    def progress_monitor(self) -> IProgressMonitor | None:
        return self.monitor

    @progress_monitor.setter
    def progress_monitor(self, monitor: IProgressMonitor) -> None:
        assert isinstance(monitor, IProgressMonitor)
        assert monitor.initialised
        self._trt.note("progress_monitor")
        self.monitor = monitor


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple[Any, Any, Any]] = {}

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        for shape in (min, opt, max):
            assert all(isinstance(size, int) for size in shape)
        self.shapes[input] = (tuple(min), tuple(opt), tuple(max))


class Builder:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt

    def create_network(self, flags: int) -> Network:
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._trt.note("create_network")
        return Network()

    def create_builder_config(self) -> Config:
        self._trt.note("create_builder_config")
        self._trt.config = Config(self._trt)
        return self._trt.config

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        assert isinstance(network, Network)
        return self.build(config)

    def build(self, config: Config) -> bytes | None:
        self._trt.note("build")
        assert config.profiling_verbosity == ProfilingVerbosity.DETAILED
        if self._trt.listed is not None:
            self._trt.logger.log(ILogger.VERBOSE, self._trt.listed)
        monitor: Any = config.monitor
        monitor.phase_start("Building", None, 2)
        assert monitor.step_complete("Building", 0) is True
        monitor.phase_finish("Building")
        return self._trt.serialized


class Parser:
    def __init__(self, trt: TensorRT, network: Network) -> None:
        self._trt, self._network = trt, network

    def parse_from_file(self, model: str) -> bool:
        assert isinstance(model, str)
        self._trt.note("parse_from_file")
        self._network.fill()
        return self._trt.parses

    @property
    def num_errors(self) -> int:
        return 0 if self._trt.parses else 1

    def get_error(self, index: int) -> str:
        return f"error {index}: no such operator"


class TensorRTLLM:
    """The module `tensorrt_llm` over the other: `Builder()` and what it wraps."""

    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt

    def Builder(self) -> Any:
        return WrappedBuilder(self._trt)


class WrappedBuilder:
    def __init__(self, trt: TensorRT) -> None:
        self._trt = trt
        self.trt_builder = trt.Builder(Logger(Logger.WARNING))
        self._network: Any = None
        self._config: Any = None

    def create_network(self) -> Any:
        flags = 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self._network = SimpleNamespace(trt_network=self.trt_builder.create_network(flags))
        return self._network

    def create_builder_config(self, precision: str) -> Any:
        assert precision in ("float32", "float16", "bfloat16")
        config = self.trt_builder.create_builder_config()
        self._config = SimpleNamespace(trt_builder_config=config)
        return self._config

    def build_engine(self, network: Any, builder_config: Any) -> bytes | None:
        assert network is self._network, "build_engine takes TensorRT-LLM's own network"
        assert builder_config is self._config, "build_engine takes TensorRT-LLM's own config"
        self._trt.note("build_engine")
        return self.trt_builder.build(builder_config.trt_builder_config)
