"""All errors are in one file: what is there keeps its class and code between processes."""

import ast
import builtins
from pathlib import Path

import pytest

import legokv
from legokv import errors
from legokv.errors import LONGEST_LINE, LegokvError, exact, sentence_of
from legokv.serving.messages import error_of, failed

PACKAGE = Path(legokv.__file__).parent
KNOWN = {name: value for name, value in vars(errors).items() if isinstance(value, type)}
CODES = {
    "BackendMissing": "UNSUPPORTED",
    "ClaimLost": "UNAVAILABLE",
    "LaunchRefused": "UNSUPPORTED",
    "NativeBuildFailed": "INTERNAL",
    "NativeLibraryMissing": "UNSUPPORTED",
    "NotFinite": "INTERNAL",
    "OutOfMemory": "UNAVAILABLE",
    "PlanBuildFailed": "INTERNAL",
    "PluginBuildFailed": "INTERNAL",
    "StepFailed": "INTERNAL",
    "ToolMisnamed": "INVALID_ARG",
    "ToolchainMissing": "UNSUPPORTED",
}


def raisable(kind):
    return isinstance(kind, type) and issubclass(kind, BaseException)


def exceptions_in(text, known):
    """Names of the exception classes that a module defines, those made of its own included."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef):
            bases = {ast.unparse(base).rpartition(".")[2] for base in node.bases}
            if bases & (known | found):
                found.add(node.name)
    return found


def test_every_exception_class_of_the_package_is_in_errors():
    raised = {name for name, kind in vars(builtins).items() if isinstance(kind, type)}
    known = {name for name in raised if issubclass(vars(builtins)[name], BaseException)} | set(
        KNOWN
    )
    assert exceptions_in("class A(OSError): ...\nclass B(A): ...\nclass C(dict): ...", known) == {
        "A",
        "B",
    }
    elsewhere = {
        str(file.relative_to(PACKAGE)): names
        for file in sorted(PACKAGE.rglob("*.py"))
        if file != Path(errors.__file__) and (names := exceptions_in(file.read_text(), known))
    }
    assert elsewhere == {}


@pytest.mark.parametrize(("name", "code"), CODES.items())
def test_an_error_of_a_library_or_a_build_keeps_its_class_and_code_on_the_way(name, code):
    arrived = error_of(failed(KNOWN[name]("5 > 3")))
    assert isinstance(arrived, LegokvError)
    assert (type(arrived), arrived.code, str(arrived)) == (KNOWN[name], code, "5 > 3")


def test_what_an_error_says_drives_no_terminal():
    said = sentence_of(LegokvError("'\x1b[31m\r\u202e\0' is none\nof 東京: é 👩‍🔬"))
    assert said == "'\\x1b[31m\\r\\u202e\\x00' is none\nof 東京: é 👩\\u200d🔬"


def test_what_an_error_says_ends_and_its_next_step_is_in_it():
    said = sentence_of(LegokvError(f"{'x' * 10**6} is none: fetch it again\nand again"))
    assert said.startswith("xxx")
    assert said.endswith("x is none: fetch it again\nand again")
    assert len(said) < LONGEST_LINE + 20


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (5, "5"),
        (5.0, "5"),
        (604799.9, "604799.9"),
        (1.0000001, "1.0000001"),
        (9.999999974752427e-07, "1e-06"),
        (0.10000000149011612, "0.1"),
        (1.0000001192092896, "1.0000001192092896"),
        (1e300, "1e+300"),
        (-1e-300, "-1e-300"),
    ],
)
def test_a_number_is_shown_in_digits_that_no_other_has_as_its_sender_wrote_it(number, text):
    assert exact(number) == text
