"""The models' config.pbtxt files name what the code behind them takes and gives."""

import ast
import re
from pathlib import Path

import pytest
from small_tokenizer import small_tokenizer

from legokv.engine.request import Finished, Token, Usage
from legokv.engine.sampling import TokenLogProbs
from legokv.serving.answers import AnswersSoFar
from legokv.serving.generate import _Progress, _result
from legokv.serving.linking import Linked
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
    answers = AnswersSoFar(question, small_tokenizer())
    sent = [answers.add(Token(5, "a", "stop", n, TokenLogProbs(-0.5))) for n in range(2)]
    answered = Finished("stop", Usage(1, 1, 0, 0, 1))
    linked = Linked((), "own", ())
    result = _result(RequestLine("generate"), question, linked, answered, _Progress())
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


def test_documents_pass_one_text_each_way_and_engine_takes_a_secret_with_it() -> None:
    assert tensors("documents", "input") == {"request": "STRING"}
    assert tensors("documents", "output") == {"reply": "STRING"}
    assert tensors("engine", "input") == {"secret": "STRING", "command": "STRING"}
    assert tensors("engine", "output") == {"events": "STRING"}


TRANSLATING = (
    *(ast.Module, ast.Import, ast.ImportFrom, ast.alias, ast.ClassDef, ast.FunctionDef),
    *(ast.arguments, ast.arg, ast.Assign, ast.For, ast.Expr, ast.Call, ast.Attribute, ast.Name),
    *(ast.Subscript, ast.Constant, ast.Dict, ast.expr_context, ast.With, ast.withitem),
)
"""What a file that only hands values on is made of: it chooses, computes and catches nothing."""


@pytest.mark.parametrize("model", MODELS)
def test_a_model_file_only_translates(model: str) -> None:
    text = (model_repository() / model / "1" / "model.py").read_text()
    nodes = list(ast.walk(ast.parse(text)))
    assert [ast.unparse(node) for node in nodes if not isinstance(node, TRANSLATING)] == []
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    assert {module for module in modules if not str(module).startswith("legokv.serving.")} == set()
    functions = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
    assert functions <= {"initialize", "execute", "finalize"}
