"""Finding what compiles the plugins, and what is said when it isn't there."""

from pathlib import Path

import pytest

from legokv.kernels import toolchain


def test_the_compiler_named_in_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = tmp_path / "nvcc"
    nvcc.touch(mode=0o755)
    monkeypatch.setenv("CUDACXX", str(nvcc))
    assert toolchain.find_nvcc() == nvcc
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("CUDACXX", "nvcc")
    assert toolchain.find_nvcc() == nvcc


def test_a_wrong_compiler_named_in_the_environment_is_an_error_with_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvcc").touch(mode=0o644)
    for wrong in ("/no/such/nvcc", str(tmp_path), str(tmp_path / "nvcc"), "nvcc -O3"):
        monkeypatch.setenv("CUDACXX", wrong)
        with pytest.raises(
            toolchain.ToolMisnamed, match=f"CUDACXX={wrong} is no program: name nvcc's path"
        ):
            toolchain.nvcc_or_wheels(tmp_path, print)


def test_an_empty_compiler_in_the_environment_is_as_good_as_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvcc").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CUDACXX", "")
    assert toolchain.find_nvcc() == tmp_path / "nvcc"


def test_named_tensorrt_headers_are_taken_or_their_lack_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENSORRT_INCLUDE", str(tmp_path))
    with pytest.raises(toolchain.ToolMisnamed, match=r"has no NvInferRuntime\.h: name the folder"):
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
