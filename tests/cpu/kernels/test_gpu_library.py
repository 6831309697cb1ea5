"""Which plugin library `make gpu` runs where it can, can't, or fails to compile one."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
from paths import ROOT

from legokv.errors import PluginBuildFailed
from legokv.kernels.build_gpu import LIBRARY_NAME, PluginBuild
from legokv.kernels.toolchain import HEADER

BENCHMARK = ROOT / "benchmarks" / "gpu"


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(BENCHMARK)
    monkeypatch.delitem(sys.modules, "library", raising=False)
    import library

    return library


@pytest.fixture
def carried(tmp_path: Path) -> Path:
    """A library for this GPU, made of other sources."""
    folder = tmp_path / "carried"
    folder.mkdir()
    (folder / LIBRARY_NAME).touch()
    (folder / "sources.sha256").write_text(f"{'0' * 64} 90\n")
    return folder


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginBuild:
    """Of sources that do not compile, with all there is to compile with."""
    source = tmp_path / "plugins"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(broken LANGUAGES CXX)\n"
        "add_library(legokv_plugins SHARED broken.cpp)\n"
    )
    (source / "broken.cpp").write_text("no_such_type a;\n")
    nvcc = tmp_path / "nvcc"
    nvcc.touch(mode=0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    (tmp_path / HEADER).touch()
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    return PluginBuild(tmp_path / "out", source=source, architectures=("90",))


def test_where_a_library_of_other_sources_was_carried_and_these_do_not_compile_both_are_said(
    library: ModuleType, build: PluginBuild, carried: Path
) -> None:
    with pytest.raises(PluginBuildFailed, match="no_such_type") as refused:
        library.carried_or_built(build, carried)
    assert str(refused.value).endswith(f"And the library in {carried} is of other sources")


def test_without_a_carried_library_or_anything_to_compile_with_both_are_said(
    library: ModuleType, build: PluginBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("legokv.kernels.toolchain.HEADER", "NvInferOfNoRelease.h")
    monkeypatch.delenv("TENSORRT_INCLUDE")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PluginBuildFailed, match=r"pip could not fetch TensorRT.* has no library"):
        library.carried_or_built(build, tmp_path / "none")


def test_a_compiler_that_is_not_where_it_was_named_is_named(
    library: ModuleType, build: PluginBuild, carried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDACXX", "/no/such/nvcc")
    with pytest.raises(PluginBuildFailed, match="CUDACXX=/no/such/nvcc"):
        library.carried_or_built(build, carried)


def test_the_stage_fails_in_one_sentence_without_a_traceback(
    library: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*, host_form: bool) -> tuple[Path, str]:
        raise PluginBuildFailed(f"broken, host form: {host_form}")

    monkeypatch.setattr(library, "find_library", refuse)
    monkeypatch.setattr(sys, "argv", ["library.py", "unused.json", "--host-form"])
    assert library.main() == 1
    assert capsys.readouterr().err == "library.py: broken, host form: True\n"
