"""A whole engine folder for each TensorRT that can't be installed here, built by its stand-in.

The build script's own way, its build process included; only the modules `tensorrt` and
`tensorrt_llm` are the stand-in, found on the path as the real ones would be.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorrt_standin import VERSION

from legokv.build.engine import BuildSettings, build_engine_folder
from legokv.built.folder import read_engine_folder
from legokv.plan import write
from legokv.plan.backends import PLAN_BACKENDS, this_machine

HERE = Path(__file__).parent
BACKENDS = ("tensorrt", "tensorrt-llm")
MODULES = {
    "tensorrt.py": "import sys, tensorrt_standin as s; sys.modules[__name__] = s.TensorRT()",
    "tensorrt_llm.py": (
        "import sys, tensorrt, tensorrt_standin as s; "
        "sys.modules[__name__] = s.TensorRTLLM(tensorrt)"
    ),
    "tensorrt_llm-1.2.1.dist-info/METADATA": "Name: tensorrt-llm\nVersion: 1.2.1\n",
}


@pytest.fixture(scope="module")
def standins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Both modules on the path of this process and of those it starts, and a GPU to build for."""
    folder = tmp_path_factory.mktemp("modules")
    for name, text in MODULES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    paths = [str(folder), str(HERE), os.environ.get("PYTHONPATH", "")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
        patch.setattr(write, "gpu_architecture", lambda *number: "sm_90")
        yield
    for name in ("tensorrt", "tensorrt_llm"):
        sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def built(
    standins: None,
    plugin_library: Path,
    tiny_checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, tuple[Path, list[str]]]:
    """The engine folder of each backend, and what was said while it was built."""
    assert this_machine().installed >= set(BACKENDS)
    made = {}
    for backend in BACKENDS:
        said: list[str] = []
        folder = tmp_path_factory.mktemp("standin") / backend
        settings = BuildSettings("small", backend=backend, plugin_library=lambda: plugin_library)
        assert build_engine_folder(tiny_checkpoint("llama-wide"), folder, settings, say=said.append)
        made[backend] = folder, said
    return made


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_engine_folder_has_the_plan_its_backend_serialized(
    built: dict[str, tuple[Path, list[str]]], backend: str
) -> None:
    engine, said = built[backend]
    summary = f"  {backend} {VERSION}: 3 layers, of them 1 KvImport, 1 LegoLinkAttention"
    assert any(line.startswith(summary) for line in said), said
    plan = read_engine_folder(engine).plan
    assert plan is not None
    assert (plan.flavour, plan.version, plan.architecture) == (backend, VERSION, "sm_90")
    assert plan.plan_file == PLAN_BACKENDS[backend].plan_file
    assert (engine / plan.plan_file).read_bytes() == b"plan"


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_of_the_scoring_pass_is_beside_it_but_for_tensorrt_llm(
    built: dict[str, tuple[Path, list[str]]], backend: str
) -> None:
    engine, said = built[backend]
    facts = read_engine_folder(engine)
    assert facts.plan is not None
    made = {file.name for file in facts.produced if "scoring" in file.name}
    present = {path.name for path in engine.rglob("*scoring*")}
    words = [line for line in said if "scoring" in line]
    if backend == "tensorrt-llm":
        assert (facts.plan.scoring_file, made, present, words) == ("", set(), set(), [])
        return
    assert (facts.plan.scoring_file, facts.plan.scored) == ("tensorrt.scoring.plan", range(1))
    assert (
        made
        == present
        == {
            "scoring.onnx",
            "scoring.onnx.data",
            "tensorrt.scoring.plan",
            "tensorrt.scoring.layers.json",
        }
    )
    assert words[0] == "Exporting scoring.onnx, 1 layers in bfloat16"
    assert words[1] == f"Building tensorrt.scoring.plan with tensorrt {VERSION}"


def test_a_next_build_of_the_folder_takes_what_the_last_one_timed(
    standins: None, plugin_library: Path, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    settings = BuildSettings("small", backend="tensorrt", plugin_library=lambda: plugin_library)
    for builds in (1, 2):
        checkpoint, folder = tiny_checkpoint("llama-wide"), tmp_path / "engine"
        assert build_engine_folder(checkpoint, folder, settings, force=True)
        # The plan of the scoring pass takes what the main one's build timed, and adds to it.
        assert (folder / "tensorrt.timings").read_bytes() == b"timed" * 2 * builds
    recorded = {file.name for file in read_engine_folder(folder).produced}
    assert {"tensorrt.timings", "tensorrt.layers.json"} <= recorded
    assert not build_engine_folder(checkpoint, folder, settings)


def test_tensorrt_llms_folder_has_the_config_it_reads_beside_the_engine(
    built: dict[str, tuple[Path, list[str]]], tiny_checkpoint: Callable[[str], Path]
) -> None:
    checkpoint, engine = tiny_checkpoint("llama-wide"), built["tensorrt-llm"][0]
    facts = read_engine_folder(engine)
    names = sorted(path.name for path in (engine / "tensorrt-llm").iterdir())
    assert names == ["config.json", "rank0.engine"]
    assert "tensorrt-llm/config.json" in {file.name for file in facts.produced}
    # The checkpoint's own stays what it was.
    assert (engine / "config.json").read_bytes() == (checkpoint / "config.json").read_bytes()

    config = json.loads((engine / "tensorrt-llm" / "config.json").read_text())
    assert sorted(config) == ["build_config", "pretrained_config", "version"]
    assert config["version"] == "1.2.1"
    hugging_face = json.loads((checkpoint / "config.json").read_text())
    model = config["pretrained_config"]
    assert model["architecture"] == hugging_face["architectures"][0]
    for name in ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                 "vocab_size", "intermediate_size", "max_position_embeddings"):  # fmt: skip
        assert model[name] == hugging_face[name], name
    assert (model["dtype"], model["norm_epsilon"]) == ("bfloat16", hugging_face["rms_norm_eps"])
    limits = config["build_config"]
    # What BuildConfig.from_dict has no default for.
    assert {"max_input_len", "max_seq_len", "max_batch_size", "max_beam_width", "max_num_tokens",
            "opt_num_tokens"} <= set(limits)  # fmt: skip
    assert (limits["max_num_tokens"], limits["max_batch_size"]) == (8192, 64)
    assert limits["max_seq_len"] == hugging_face["max_position_embeddings"]
    assert limits["force_num_profiles"] == 3
