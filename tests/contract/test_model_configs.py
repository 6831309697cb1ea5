"""The models' config.pbtxt files name what the code behind them takes and gives."""

import re
from pathlib import Path

import pytest

from legokv.request import Usage
from legokv.serving.generate import _Progress, _result
from legokv.serving.messages import Answered
from legokv.serving.question import INPUT_NAMES, question_from_fields
from legokv.serving.request_log import RequestLine
from legokv.serving.settings import Settings
from legokv.serving.triton_install import model_repository

MODELS = ("documents", "engine", "generate")


def config(model: str) -> str:
    text = (model_repository() / model / "config.pbtxt").read_text()
    return re.sub(r"#.*", "", text)


def tensors(model: str, section: str) -> dict[str, str]:
    """Names and types in the `input` or `output` list."""
    found = re.search(rf"^{section} \[(.*?)^\]", config(model), re.DOTALL | re.MULTILINE)
    assert found is not None
    return dict(re.findall(r'name: "(\w+)" data_type: TYPE_(\w+)', found[1]))


@pytest.mark.parametrize("model", MODELS)
def test_a_model_s_name_is_its_folder_s(model: str) -> None:
    assert re.search(r'^name: "(\w+)"', config(model), re.MULTILINE)[1] == model  # type: ignore[index]


def test_only_the_model_that_streams_is_decoupled() -> None:
    assert ["decoupled: true" in config(model) for model in MODELS] == [False, False, True]


def test_generate_takes_the_fields_a_question_has() -> None:
    assert set(tensors("generate", "input")) == set(INPUT_NAMES)


def test_generate_gives_the_values_a_result_has_in_types_that_hold_them() -> None:
    settings = Settings(engine=Path("/e"))
    question = question_from_fields({"text_input": b"Who?"}, settings)
    answered = Answered("stop", Usage(1, 1, 0, 0, 1))
    values = _result(RequestLine("generate"), question, answered, _Progress())
    types = {str: "STRING", int: "INT32", float: "FP64"}
    assert tensors("generate", "output") == {n: types[type(v)] for n, v in values.items()}


def test_documents_and_engine_pass_one_text_each_way() -> None:
    assert tensors("documents", "input") == {"request": "STRING"}
    assert tensors("documents", "output") == {"reply": "STRING"}
    assert tensors("engine", "input") == {"command": "STRING"}
    assert tensors("engine", "output") == {"events": "STRING"}


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_only_translates(model: str) -> None:
    lines = (model_repository() / model / "1" / "model.py").read_text().splitlines()
    assert len(lines) <= 40
