"""How the tests ask for a plan of TensorRT-RTX: by the build script, and in this process."""

import sys
from pathlib import Path

from paths import ROOT

from legokv.build.engine import BuildSettings
from legokv.built.plan_limits import PlanLimits
from legokv.step.graph import ImportBy

SCRIPT = ROOT / "build" / "build_engine.py"
PLAN = "tensorrt-rtx.plan"


def command(library: Path, output: Path, *arguments: str | Path) -> list[str]:
    options = ["--backend", "tensorrt-rtx", "--plugin-library", library, "--output", output]
    return [sys.executable, str(SCRIPT), *map(str, [*options, *arguments])]


def settings_of(
    name: str,
    library: Path,
    dtype: str = "bfloat16",
    max_sequences: int = 5,
    imports: ImportBy = "stream",
) -> BuildSettings:
    limits = PlanLimits(max_step_tokens=256, max_sequences=max_sequences, max_import_pages=8)
    return BuildSettings(
        name,
        dtype,
        backend="tensorrt-rtx",
        plugin_library=lambda: library,
        limits=limits,
        imports=imports,
    )
