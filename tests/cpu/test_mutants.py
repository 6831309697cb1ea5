"""The mutants fit the sources, and their runner tells a noticed one from one that is not."""

import subprocess
import sys
from pathlib import Path

import pytest

MUTANTS = Path(__file__).resolve().parents[1] / "mutants"
TRY = """
import sys
from pathlib import Path
from trial import Mutant, try_mutant
tree, file, test, old, new = sys.argv[1:]
print(try_mutant(Path(tree), Mutant(file, (test,), "doubling", old, new)))
"""
TEST = "from double import double\n\n\ndef test_double():\n    assert double(3) == 6\n"


@pytest.fixture
def trial(monkeypatch):
    monkeypatch.syspath_prepend(str(MUTANTS))
    import trial

    return trial


@pytest.fixture
def tree(tmp_path):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "double.py").write_text("def double(n):\n    return n + n\n")
    (tmp_path / "test_double.py").write_text(TEST)
    return tmp_path


def mutant(trial, old, new, tests=("test_double.py",)):
    return trial.Mutant("src/double.py", tests, "doubling", old, new)


def test_every_place_is_in_its_file_once_and_its_tests_are_there(trial):
    from places import places

    mutants = list(places())
    assert len(mutants) >= 40
    assert trial.unfit(mutants, trial.ROOT) == []


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [
        ("n + n", "n + 1", "killed"),
        ("n + n", "2 * n", "SURVIVED"),
        ("n + n", "n +", "BROKEN"),
    ],
)
def test_a_mutant_is_killed_by_a_failing_test_alone_and_the_copy_is_as_before(
    tree, old, new, outcome
):
    before = (tree / "src" / "double.py").read_text()
    # In a process without a pytest of its own: what is forked there runs one.
    given = (str(tree), "src/double.py", "test_double.py", old, new)
    ended = subprocess.run(
        [sys.executable, "-c", TRY, *given], cwd=MUTANTS, capture_output=True, text=True, check=True
    )
    assert ended.stdout.splitlines()[-1] == outcome
    assert (tree / "src" / "double.py").read_text() == before


@pytest.mark.parametrize(
    ("old", "new", "tests", "error"),
    [
        ("n - n", "n", ("test_double.py",), "the text is there 0 times, not once: 'n - n'"),
        ("n", "m", ("test_double.py",), "the text is there 4 times, not once: 'n'"),
        ("n + n", "n + n", ("test_double.py",), "nothing is changed"),
        ("n + n", "n", ("test_triple.py",), "no test_triple.py"),
        ("n + n", "n", (), "no test"),
    ],
)
def test_a_mutant_that_does_not_fit_is_an_error(trial, tree, old, new, tests, error):
    assert trial.unfit([mutant(trial, old, new, tests)], tree) == [
        f"src/double.py (doubling): {error}"
    ]


def test_a_file_that_is_not_there_is_an_error(trial, tree):
    lost = trial.Mutant("src/triple.py", ("test_double.py",), "tripling", "a", "b")
    assert trial.unfit([lost], tree) == ["src/triple.py (tripling): there is no such file"]


def test_no_place_chosen_is_no_success():
    command = [sys.executable, MUTANTS, "no-such-file"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "no place is in a file with no-such-file\n")
