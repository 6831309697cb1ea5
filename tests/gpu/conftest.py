"""What the GPU tests share: a GPU or the reason for skipping, the compiled kernels, a fresh seed.

--require-gpu    a skip is a failure: what `make gpu` says
--host-form      run over the kernels' host form on a CPU, to try the tests themselves
--gpu-seed N     repeat a run; the header names the seed of each
"""

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gpu_kernels import Kernels
from paths import ROOT

from legokv.kernels.build_gpu import PluginBuild, build_host_kernels, build_plugin_library
from legokv.kernels.gpu import Launchers

OUT = ROOT / "out"
NO_GPU = "no NVIDIA GPU that torch can use; `make gpu` runs this where there is one"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gpu")
    group.addoption("--require-gpu", action="store_true", help="a skip is a failure")
    group.addoption("--host-form", action="store_true", help="run over the kernels' host form")
    group.addoption("--gpu-seed", type=int, metavar="N", help="repeat the inputs of another run")


def pytest_configure(config: pytest.Config) -> None:
    if option(config, "gpu_seed") is None:
        config.option.gpu_seed = secrets.randbits(31)


def pytest_report_header(config: pytest.Config) -> str:
    return f"GPU tests: torch {torch.__version__}, --gpu-seed {config.option.gpu_seed}"


def option(config: pytest.Config, name: str) -> Any:
    """The option's value; None where this file was found too late to declare it."""
    return config.getoption(name, default=None)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = (yield).get_result()
    if report.skipped and not hasattr(report, "wasxfail") and option(item.config, "require_gpu"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which --require-gpu forbids: {report.longrepr[2]}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    if torch.cuda.is_available() or option(config, "host_form"):
        return
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason=NO_GPU))


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    return int(pytestconfig.option.gpu_seed)


@pytest.fixture(scope="session")
def kernels(pytestconfig: pytest.Config) -> Kernels:
    """The library $LEGOKV_PLUGIN_LIBRARY names, else one built for this GPU; or the host form."""
    if option(pytestconfig, "host_form"):
        folder = build_host_kernels(PluginBuild(OUT), print)
        return Kernels(Launchers(folder / "liblegokv_host_kernels.so"), torch.device("cpu"))
    return Kernels(Launchers(cuda_library()), torch.device("cuda"))


def cuda_library() -> Path:
    given = os.environ.get("LEGOKV_PLUGIN_LIBRARY")
    if given:
        return Path(given)
    major, minor = torch.cuda.get_device_capability()
    build = PluginBuild(OUT, folder="plugins-gpu", architectures=(f"{major}{minor}",))
    return build_plugin_library(build, print)


@pytest.fixture
def gpu(kernels: Kernels) -> torch.device:
    """The GPU itself, for what the host form is too slow for or does not have."""
    if kernels.device.type != "cuda":
        pytest.skip("the host form is too slow for this, or has no streams")
    return kernels.device
