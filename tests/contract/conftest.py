"""The compiled plugin library, built once and only where its sources changed, and plans of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from paths import ROOT
from plan_builds import settings_of

from legokv.build.engine import build_engine_folder
from legokv.kernels.build_gpu import PluginBuild, build_plugin_library, build_plugin_test
from legokv.step.graph import ImportBy

Built = Callable[..., tuple[Path, str]]
# One architecture and its PTX: what compiles for it compiles for the others too.
BUILD = PluginBuild(ROOT / "out", folder="plugins-test", architectures=("80",))


@pytest.fixture(scope="session")
def plugin_library() -> Path:
    return build_plugin_library(BUILD, print)


@pytest.fixture(scope="session")
def plugin_test(plugin_library: Path) -> Path:
    """The program that drives the plugin objects over the kernels' host form."""
    return build_plugin_test(BUILD, print)


@pytest.fixture(scope="session")
def built(
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Built:
    """A tiny checkpoint's engine folder with its plan, and what was said meanwhile; made once."""
    made: dict[tuple[str, str, str], tuple[Path, str]] = {}

    def engine(
        name: str = "llama-wide", dtype: str = "bfloat16", imports: ImportBy = "stream"
    ) -> tuple[Path, str]:
        of = name, dtype, imports
        if of not in made:
            said: list[str] = []
            output = tmp_path_factory.mktemp("plans") / f"{name}-{dtype}"
            settings = settings_of(name, plugin_library, dtype, imports=imports)
            build_engine_folder(tiny_checkpoint(name), output, settings, say=said.append)
            made[of] = output, "\n".join(said)
        return made[of]

    return engine
