"""TensorRT-RTX: builds plans without a GPU, if its parser finds the library by its plain name."""

import importlib
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from legokv.plan.plan_builder import PlanBuilder, strongly_typed_builder
from legokv.plan.request import PlanBuildFailed

MODULE = "tensorrt_rtx_bindings"
LIBRARIES = "tensorrt_rtx_libs"
PLAIN_NAME = "libtensorrt_rtx.so"


def open_builder(dtype: str) -> PlanBuilder:
    """Builder, network and config; `dtype` is in the network already."""
    return strongly_typed_builder(importlib.import_module(MODULE))


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
