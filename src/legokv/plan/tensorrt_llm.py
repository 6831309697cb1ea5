"""TensorRT-LLM 1.2, the last with engines: its Builder and Network wrap TensorRT's objects."""

import importlib

from legokv.plan.plan_builder import PlanBuilder

MODULE = "tensorrt_llm"


def open_builder(dtype: str) -> PlanBuilder:
    """The TensorRT objects inside TensorRT-LLM's, built by its own `build_engine`."""
    wrapper, trt = importlib.import_module(MODULE), importlib.import_module("tensorrt")
    builder = wrapper.Builder()
    network = builder.create_network()
    config = builder.create_builder_config(precision=dtype)
    return PlanBuilder(
        trt,
        trt.Logger(trt.Logger.WARNING),
        builder.trt_builder,
        network.trt_network,
        config.trt_builder_config,
        serialize=lambda: builder.build_engine(network, config),
    )
