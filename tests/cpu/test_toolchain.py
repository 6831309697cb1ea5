"""Finding what compiles the plugins, and what is said when it isn't there."""

from pathlib import Path

import pytest

from legokv import toolchain
from legokv.plugin_library import PluginBuild, PluginBuildFailed, build_host_kernels


def test_the_compiler_named_in_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.touch()
    monkeypatch.setenv("CUDACXX", str(nvcc))
    assert toolchain.find_nvcc() == nvcc


def test_named_tensorrt_headers_are_taken_or_their_lack_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    with pytest.raises(
        toolchain.ToolchainMissing, match=r"has no NvInferRuntime\.h: name the folder"
    ):
        toolchain.tensorrt_headers(tmp_path, print)
    (tmp_path / toolchain.HEADER).touch()
    assert toolchain.tensorrt_headers(tmp_path / "unused", print) == tmp_path


def test_headers_that_can_be_neither_found_nor_fetched_say_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORRT_INCLUDE", raising=False)
    monkeypatch.setattr(toolchain, "HEADER", "NvInferOfNoRelease.h")
    # No index at all: what a machine without a network finds.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(toolchain.ToolchainMissing, match=r"could not fetch TensorRT's headers.*"
                       r"check the network, or install the CUDA toolkit"):  # fmt: skip
        toolchain.tensorrt_headers(tmp_path, print)


def test_a_headers_wheel_with_another_digest_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = tmp_path / "kernel_lens-2.0.1-py3-none-any.whl"
    wheel.write_bytes(b"not the wheel")
    with pytest.raises(toolchain.ToolchainMissing, match=r"has SHA-256 .*, expected 07cc714e"):
        toolchain.unpack_headers(wheel)
    assert not wheel.exists()


def test_a_source_that_does_not_compile_is_shown_in_the_compiler_s_words(tmp_path: Path) -> None:
    source = tmp_path / "plugins"
    source.mkdir()
    (source / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.25)\nproject(broken LANGUAGES CXX)\n"
        'file(WRITE ${CMAKE_BINARY_DIR}/a.cpp "no_such_type a;")\n'
        "add_library(host_tests STATIC ${CMAKE_BINARY_DIR}/a.cpp)\n"
    )
    with pytest.raises(PluginBuildFailed, match="no_such_type"):
        build_host_kernels(PluginBuild(tmp_path / "out", source=source), print)
