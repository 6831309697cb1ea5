"""The compiled plugin library, built once and only where its sources changed."""

from pathlib import Path

import pytest

from legokv.plugin_library import PluginBuild, build_plugin_library, build_plugin_test

# One architecture and its PTX: what compiles for it compiles for the others too.
BUILD = PluginBuild(
    Path(__file__).resolve().parents[2] / "out", folder="plugins-test", architectures=("80",)
)


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    return build_plugin_library(BUILD, print)


@pytest.fixture(scope="session")
def plugin_test(plugin_library: Path) -> Path:
    """The program that drives the plugin objects over the kernels' host form."""
    return build_plugin_test(BUILD, print)
