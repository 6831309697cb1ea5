"""Which backend is taken, why, and what one is told that can't build here or may not run here."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from paths import ROOT

from legokv.built.plan_facts import ANY_ARCHITECTURE, PlanFacts, PlanRuntime, check_plan
from legokv.built.plan_limits import PlanLimits
from legokv.errors import BackendMissing, EngineMismatch
from legokv.plan import backends
from legokv.plan.backends import BACKENDS, PLAN_BACKENDS, Machine, choose_backend, this_machine

EVERYTHING = frozenset(PLAN_BACKENDS)
PLAN = PlanFacts(
    flavour="tensorrt",
    version="10.14.1",
    architecture="sm_90",
    plan_file="tensorrt.plan",
    library_file="liblegokv_plugins.so",
    library_sha256="aa",
    limits=PlanLimits(),
    profiles=(),
)
HERE = PlanRuntime("tensorrt", "10.14.1", "sm_90", "aa")


def automatic(machine: Machine) -> tuple[str, str]:
    said: list[str] = []
    chosen = choose_backend("auto", machine, said.append)
    assert len(said) == 1
    return chosen, said[0]


@pytest.mark.parametrize(
    ("installed", "chosen"),
    [
        (EVERYTHING, "tensorrt-llm"),
        (frozenset({"tensorrt", "tensorrt-rtx"}), "tensorrt"),
        (frozenset(), "torch"),
    ],
)
def test_on_a_gpu_auto_takes_the_first_that_is_installed_and_says_why(
    installed: frozenset[str], chosen: str
) -> None:
    found, said = automatic(Machine("sm_90", installed))
    assert found == chosen
    assert said.startswith(f"Backend auto: {chosen}, since ")
    assert ("sm_90" in said) == (chosen != "torch")


@pytest.mark.parametrize(
    ("gpu", "chosen"),
    [
        ("sm_75", "tensorrt-rtx"),
        ("sm_80", "torch"),
        ("sm_86", "tensorrt-rtx"),
        ("sm_89", "tensorrt-rtx"),
        ("sm_90", "torch"),
        ("sm_100", "torch"),
        ("sm_120", "tensorrt-rtx"),
    ],
)
def test_auto_takes_rtx_only_where_rtx_lists_the_gpu(gpu: str, chosen: str) -> None:
    found, said = automatic(Machine(gpu, frozenset({"tensorrt-rtx"})))
    assert (found, gpu in said) == (chosen, True)
    assert ("does not list as supported; for this GPU: pip install tensorrt" in said) == (
        chosen == "torch"
    )
    assert automatic(Machine(gpu, EVERYTHING - {"tensorrt-llm"}))[0] == "tensorrt"
    assert choose_backend("tensorrt-rtx", Machine(gpu, EVERYTHING), print) == "tensorrt-rtx"


def test_without_a_gpu_auto_takes_torch_and_names_what_could_build_all_the_same() -> None:
    chosen, said = automatic(Machine(None, EVERYTHING))
    assert chosen == "torch"
    assert "no NVIDIA GPU" in said
    assert "--backend tensorrt-rtx builds one all the same" in said
    assert "--backend tensorrt " not in said
    assert "--backend" not in automatic(Machine(None, frozenset()))[1]


@pytest.mark.parametrize("name", PLAN_BACKENDS)
def test_what_is_not_installed_is_refused_with_how_to_get_it(name: str) -> None:
    with pytest.raises(BackendMissing, match=f"{name} is not installed: pip install"):
        choose_backend(name, Machine("sm_90", frozenset()), print)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-llm"])
def test_what_needs_a_gpu_to_build_is_refused_without_one(name: str) -> None:
    with pytest.raises(BackendMissing, match="torch sees none here: build there"):
        choose_backend(name, Machine(None, EVERYTHING), print)


def test_an_unknown_backend_is_refused_with_those_there_are() -> None:
    with pytest.raises(BackendMissing, match=f"no backend 'onnx'; there are {BACKENDS[0]}, torch"):
        choose_backend("onnx", Machine(None, EVERYTHING), print)


@pytest.mark.parametrize("name", ["torch", "tensorrt-rtx"])
def test_what_is_asked_for_by_name_is_taken_without_a_word(name: str) -> None:
    said: list[str] = []
    assert choose_backend(name, Machine(None, EVERYTHING), said.append) == name
    assert said == []


def test_this_machine_has_what_can_be_imported() -> None:
    installed = this_machine().installed
    assert installed <= EVERYTHING
    for name in installed:
        pytest.importorskip(PLAN_BACKENDS[name].modules[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"flavour": "tensorrt-rtx"}, "flavour tensorrt, here it is tensorrt-rtx"),
        ({"version": "11.0.0"}, "tensorrt version 10.14.1, here it is 11.0.0"),
        ({"architecture": "sm_80"}, "GPU architecture sm_90, here it is sm_80"),
        ({"library_sha256": "bb"}, "plugin library's SHA-256 aa, here it is bb"),
    ],
)
def test_a_plan_that_does_not_fit_names_both_sides(change: dict[str, str], words: str) -> None:
    check_plan(PLAN, HERE)
    with pytest.raises(EngineMismatch, match=words):
        check_plan(PLAN, replace(HERE, **change))


def test_a_plan_bound_to_no_architecture_runs_on_any() -> None:
    check_plan(replace(PLAN, architecture=ANY_ARCHITECTURE), replace(HERE, architecture="sm_80"))


@pytest.mark.parametrize(
    ("cuda", "has_driver", "words"),
    [
        (None, True, r"torch \S+ is a CPU build, and there is an NVIDIA driver: `make cuda-torch`"),
        (None, False, "torch sees no NVIDIA GPU"),
        ("13.0", True, "torch sees no NVIDIA GPU"),
    ],
)
def test_a_cpu_build_of_torch_beside_a_driver_is_said_with_the_command_that_replaces_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, cuda: str | None, has_driver: bool, words: str
) -> None:
    driver = tmp_path / "version"
    if has_driver:
        driver.touch()
    monkeypatch.setattr(backends, "NVIDIA_DRIVER", driver)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert re.match(words, backends.why_no_gpu())
    _, said = automatic(Machine(None, frozenset()))
    assert backends.why_no_gpu() in said


def test_cuda_torch_takes_the_index_s_own_build_by_the_lock_whatever_pip_is_set_to() -> None:
    (recipe,) = re.findall(
        r"^cuda-torch: .*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE
    )
    assert "pip install --isolated --require-hashes --constraint constraints.txt" in recipe
    assert "torch.version.cuda is None" in recipe
    # What such a build needs besides is locked with it.
    assert re.search(
        r"^nvidia-cuda-runtime==", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
