"""TensorRT 10 and 11: the builder comes from the `tensorrt` module and needs its GPU."""

import importlib

from legokv.plan.plan_builder import PlanBuilder, strongly_typed_builder

MODULE = "tensorrt"


def open_builder(dtype: str) -> PlanBuilder:
    """Builder, network and config; `dtype` is in the network already."""
    return strongly_typed_builder(importlib.import_module(MODULE))
