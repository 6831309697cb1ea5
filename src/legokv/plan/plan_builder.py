"""The objects of one TensorRT that a plan is made with. They differ in who creates them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlanBuilder:
    """`trt` is the module; builder, network and config are its IBuilder, INetworkDefinition,
    IBuilderConfig. `serialize` builds the network: bytes-like, or None if it failed."""

    trt: Any
    logger: Any
    builder: Any
    network: Any
    config: Any
    serialize: Callable[[], Any]


def strongly_typed_builder(trt: Any) -> PlanBuilder:
    """The objects as TensorRT and TensorRT-RTX create them, for a network that keeps its types."""
    logger = trt.Logger(trt.Logger.WARNING)
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
    )
