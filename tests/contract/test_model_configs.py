"""The models' config.pbtxt files name what the code behind them takes and gives."""

import ast
import re
from pathlib import Path

import pytest

from legokv.engine.request import Finished, Token, Usage
from legokv.engine.sampling import TokenLogProbs
from legokv.serving.answers import AnswersSoFar
from legokv.serving.generate import _Progress, _result
from legokv.serving.log import RequestLine
from legokv.serving.question import INPUT_NAMES, question_from_fields
from legokv.serving.settings import Settings
from legokv.serving.triton.install import model_repository

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


def test_generate_gives_the_values_of_its_replies_in_types_that_hold_them() -> None:
    given = {"text_input": b"Who?", "num_return_sequences": 2, "return_log_probs": True}
    values = {
        **replied({**given, "stream": True})[0],
        **replied(given)[-1],
    }
    types = {str: "STRING", int: "INT32", float: "FP64"}
    # The log-probabilities have the type that TensorRT-LLM's models have.
    listed = {**types, float: "FP32"}
    assert tensors("generate", "output") == {
        name: (listed if rank(value) else types)[type(innermost(value))]
        for name, value in values.items()
    }
    ranks = {name: rank(value) for name, value in values.items() if rank(value)}
    assert ragged("generate", "output") == ranks


def replied(given: dict[str, object]) -> list[dict[str, object]]:
    """What is sent for a request whose two answers are one token each."""
    question = question_from_fields(given, Settings(engine=Path("/e")))
    answers = AnswersSoFar(question, str)
    sent = [answers.add(Token(5, "a", "stop", n, TokenLogProbs(-0.5))) for n in range(2)]
    answered = Finished("stop", Usage(1, 1, 0, 0, 1))
    result = _result(RequestLine("generate"), question, answered, _Progress())
    last = {**answers.outputs(), **result}
    return [*filter(None, sent), last]


def innermost(value: object) -> object:
    return innermost(value[0]) if isinstance(value, list) else value


def rank(value: object) -> int:
    return 1 + rank(value[0]) if isinstance(value, list) else 0


def ragged(model: str, section: str) -> dict[str, int]:
    """Names of the tensors of any length, and how many dimensions they have."""
    found = re.search(rf"^{section} \[(.*?)^\]", config(model), re.DOTALL | re.MULTILINE)
    assert found is not None
    lists = re.findall(r'name: "(\w+)" data_type: TYPE_\w+ dims: \[ ([-1, ]+) \]', found[1])
    return {name: dims.count("-1") for name, dims in lists if "-1" in dims}


def test_documents_and_engine_pass_one_text_each_way() -> None:
    assert tensors("documents", "input") == {"request": "STRING"}
    assert tensors("documents", "output") == {"reply": "STRING"}
    assert tensors("engine", "input") == {"command": "STRING"}
    assert tensors("engine", "output") == {"events": "STRING"}


# What would be a decision, a calculation or a fault that is hidden.
DECISIONS = (ast.If, ast.IfExp, ast.While, ast.Try, ast.BoolOp, ast.BinOp, ast.Compare, ast.Lambda)


def decisions(source: str) -> list[str]:
    """Lines of a model file that do more than hand tensors to a service and replies back."""
    broken = []
    for node in ast.walk(ast.parse(source)):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        foreign = [n for n in names if n != "os" and not n.startswith("legokv.serving.")]
        if foreign or isinstance(node, DECISIONS):
            broken.append(f"line {node.lineno}: {ast.unparse(node)}")
    return broken


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_only_translates(model: str) -> None:
    source = (model_repository() / model / "1" / "model.py").read_text()
    assert decisions(source) == []
    assert len(source.splitlines()) <= 45


@pytest.mark.parametrize(
    "line",
    ["import torch", "from legokv.engine.engine import Engine", "x = 1 if y else 2", "x + 1"],
)
def test_a_model_file_that_does_more_is_named(line: str) -> None:
    assert [found.split(":")[0] for found in decisions(f"import os\n{line}")] == ["line 2"]
