"""A plugin library is called only if it takes its arguments as this code lays them out."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from legokv.errors import EngineMismatch
from legokv.kernels.gpu import Launchers
from legokv.kernels.gpu_structs import STRUCTS, Layout, layout_of


def library_of(folder: Path, structs: dict[str, Layout], code: str = "") -> Path:
    """A library that says so of itself, and has no function but those of the first version."""
    source, library = folder / "plugins.c", folder / "plugins.so"
    info = json.dumps(json.dumps({"structs": structs}))
    names = ("kv_import", "legolink_attention", "legolink_attention_workspace")
    functions = [f"int legokv_{name}(void) {{ return 0; }}" for name in names]
    source.write_text(
        'const char* legokv_last_error(void) { return ""; }\n'
        f"const char* legokv_library_info(void) {{ return {info}; }}\n"
        + "\n".join([*functions, code])
    )
    compiler = os.environ.get("CC", "cc")
    subprocess.check_call([compiler, "-shared", "-fPIC", "-o", library, source])
    return library


def present() -> dict[str, dict[str, list[int]]]:
    return {
        name: {field: list(place) for field, place in layout_of(structure).items()}
        for name, structure in STRUCTS.items()
    }


def test_a_library_of_before_num_splits_is_refused_with_both_sizes(tmp_path: Path) -> None:
    structs = present()
    attention = structs["LegokvLegolinkAttention"]
    attention["scale"] = attention.pop("num_splits")
    with pytest.raises(
        EngineMismatch,
        match=r"takes LegokvLegolinkAttention of 220 bytes, this legokv gives 224, and num_splits, "
        r"scale lie elsewhere: build the engine again",
    ):
        Launchers(library_of(tmp_path, structs))


def test_a_library_of_before_strides_imports_for_a_plan_of_its_engine(tmp_path: Path) -> None:
    structs = present()
    del structs["LegokvLegolinkAttention"]["q_stride"]
    library = library_of(tmp_path, structs)
    assert Launchers(library, ("LegokvKvImport",)).info() == {"structs": structs}
    with pytest.raises(EngineMismatch, match="and q_stride lie elsewhere"):
        Launchers(library)


def test_a_library_of_before_imports_of_all_layers_is_refused_by_its_name(tmp_path: Path) -> None:
    structs = present()
    del structs["LegokvKvImport"]["last_elements"]
    with pytest.raises(EngineMismatch, match=r"plugins\.so is of other code: .* last_elements lie"):
        Launchers(library_of(tmp_path, structs))


def test_a_library_that_does_not_say_how_it_takes_a_structure_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EngineMismatch, match="takes LegokvKvImport of 0 bytes"):
        Launchers(library_of(tmp_path, {}))


@pytest.mark.parametrize(
    ("content", "why"), [(None, "No such file"), (b"ELF", "too short|invalid")]
)
def test_a_library_that_is_gone_or_is_none_is_refused_by_its_place(
    tmp_path: Path, content: bytes | None, why: str
) -> None:
    library = tmp_path / "plugins.so"
    if content is not None:
        library.write_bytes(content)
    with pytest.raises(
        EngineMismatch, match=rf"{library} can't be loaded \(.*({why}).*\): build the"
    ):
        Launchers(library)


def test_a_library_of_the_same_layouts_is_taken(tmp_path: Path) -> None:
    code = "long legokv_scored_attention_workspace(void) { return 0; }"
    assert Launchers(library_of(tmp_path, present(), code)).info() == {"structs": present()}
