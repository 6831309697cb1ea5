"""Building plugins/ in a folder that CMake has used before, somewhere else or with another tool."""

import fcntl
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from processes import soon

from legokv.errors import PluginBuildFailed, ToolMisnamed
from legokv.kernels.build_gpu import PluginBuild, build_host_kernels
from legokv.kernels.toolchain import drop_foreign_cache

LISTS = """cmake_minimum_required(VERSION 3.25)
project(small LANGUAGES CXX)
add_library(host_tests SHARED small.cpp)
"""


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with sources in plugins/ that is built into out/ beside them."""
    source = tmp_path / "here" / "plugins"
    source.mkdir(parents=True)
    (source / "CMakeLists.txt").write_text(LISTS)
    (source / "small.cpp").write_text("int one() { return 1; }\n")
    return source.parent


def build_in(checkout: Path) -> list[str]:
    """What was said of building the checkout."""
    said: list[str] = []
    build = PluginBuild(checkout / "out", source=checkout / "plugins")
    build_host_kernels(build, said.append)
    return said


@pytest.mark.parametrize("move", [shutil.copytree, shutil.move])
def test_a_moved_or_copied_checkout_is_compiled_again_and_says_so(checkout: Path, move) -> None:
    build_in(checkout)
    there = checkout.parent / "there"
    move(checkout, there)
    said = build_in(there)
    old, new = checkout / "plugins", there / "plugins"
    assert said[0] == (
        f"{there}/out/plugins-host was made for {old}, now it is {new}: compiling it all again"
    )
    assert any("Building CXX object" in line for line in said)
    assert build_in(there) == [line for line in said if "Built target" in line]


def test_folders_with_blanks_and_letters_of_any_script_are_compiled_in(checkout: Path) -> None:
    there = checkout.rename(checkout.parent / "a b 模型 'ü'")
    assert any("Built target" in line for line in build_in(there))
    assert (there / "out" / "plugins-host" / "libhost_tests.so").is_file()


def test_a_folder_in_its_own_place_keeps_what_it_compiled(checkout: Path) -> None:
    build_in(checkout)
    assert not any("Building CXX object" in line for line in build_in(checkout))


def test_two_builds_in_one_folder_take_turns(checkout: Path) -> None:
    folder = checkout / "out" / "plugins-host"
    folder.mkdir(parents=True)
    said: list[str] = []
    build = PluginBuild(checkout / "out", source=checkout / "plugins")
    with open(folder / ".lock", "w") as lock, ThreadPoolExecutor(1) as thread:
        fcntl.flock(lock, fcntl.LOCK_EX)
        second = thread.submit(build_host_kernels, build, said.append)
        soon(lambda: said or second.done())
        said.append("the first is done")
        fcntl.flock(lock, fcntl.LOCK_UN)
        second.result(timeout=600)
    assert said[:2] == [f"Waiting for another build in {folder}", "the first is done"]
    assert len(said) > 2


def test_another_compiler_starts_anew_and_leaves_what_was_linked(tmp_path: Path) -> None:
    (tmp_path / "CMakeCache.txt").write_text("CMAKE_CUDA_COMPILER:FILEPATH=/old/nvcc\n")
    for objects in (
        tmp_path / "CMakeFiles" / "try" / "CMakeFiles",
        tmp_path / "tests" / "CMakeFiles",
    ):
        objects.mkdir(parents=True)
    (tmp_path / "library.so").touch()
    said: list[str] = []
    drop_foreign_cache(tmp_path, {"CMAKE_CUDA_COMPILER": Path("/new/nvcc")}, said.append)
    assert len(said) == 1
    assert "made for /old/nvcc, now it is /new/nvcc" in said[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["library.so", "tests"]
    assert not list((tmp_path / "tests").iterdir())


def test_a_source_that_does_not_compile_is_shown_in_the_compiler_s_words_with_what_to_try(
    checkout: Path,
) -> None:
    (checkout / "plugins" / "small.cpp").write_text("no_such_type a;\n")
    with pytest.raises(PluginBuildFailed, match="no_such_type") as refused:
        build_in(checkout)
    assert str(refused.value).endswith(f"remove {checkout}/out/plugins-host and build again")


def test_a_folder_that_cmake_would_take_for_two_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "a;b"
    with pytest.raises(ToolMisnamed, match=r"a;b/.* has a ';' in it, at which CMake splits paths"):
        build_host_kernels(PluginBuild(out), print)
    assert not out.exists()
