"""The examples in the docstrings of the public names run, and the docstrings name all arguments."""

import doctest
import inspect
import re
from dataclasses import fields, is_dataclass

import pytest

import legokv
from legokv.build.engine import BuildSettings, build_engine_folder

PUBLIC = {name: getattr(legokv, name) for name in legokv.__all__ if name != "__version__"}
PUBLIC |= {"BuildSettings": BuildSettings, "build_engine_folder": build_engine_folder}
RECORDS = {name: value for name, value in PUBLIC.items() if is_dataclass(value)}
METHODS = ("open", "chunk", "prefill", "generate", "answer")
CALLS = {"build_engine_folder": build_engine_folder}
CALLS |= {f"Engine.{name}": getattr(legokv.Engine, name) for name in METHODS}


@pytest.fixture
def project(tiny_engine_folder, tiny_checkpoint, tmp_path, monkeypatch):
    """A folder where the tiny engine and checkpoint have the names of `make run`'s."""
    for kind, folder in (
        ("engines", tiny_engine_folder()),
        ("checkpoints", tiny_checkpoint("llama")),
    ):
        place = tmp_path / "out" / kind / "llama"
        place.parent.mkdir(parents=True)
        place.symlink_to(folder)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("name", PUBLIC)
def test_the_examples_of_a_public_name_run_and_say_what_they_show(name):
    said = []
    runner = doctest.DocTestRunner()
    with_examples = [t for t in doctest.DocTestFinder().find(PUBLIC[name], name) if t.examples]
    assert name in [found.name for found in with_examples]
    for found in with_examples:
        found.globs = {}
        runner.run(found, out=said.append)
    assert "".join(said) == ""


@pytest.mark.parametrize("name", RECORDS)
def test_the_docstring_of_a_public_record_says_what_each_field_is(name):
    assert [f.name for f in fields(RECORDS[name]) if not says(RECORDS[name], f.name)] == []


@pytest.mark.parametrize("name", CALLS)
def test_the_docstring_of_a_public_call_says_what_each_argument_is(name):
    arguments = [a for a in inspect.signature(CALLS[name]).parameters if a != "self"]
    assert [a for a in arguments if not says(CALLS[name], a)] == []


def says(documented, argument):
    """Whether a docstring has "argument: ...", "argument, other: ..." or `argument`."""
    line = rf"(^|\. +)(\w+, )*{argument}(, \w+)*( \([^)]*\))?: |`{argument}`"
    return re.search(line, inspect.getdoc(documented), re.MULTILINE)
