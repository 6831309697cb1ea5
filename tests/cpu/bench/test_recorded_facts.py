"""What tests record as facts is read at the end of a run, whether they pass or fail."""

import subprocess
import sys
from pathlib import Path

from paths import TESTS

RECORDING = """
def test_counts(record_property):
    record_property("fact", "7 kills, 0 wrong answers")
    record_property("seconds", "not a fact")

def test_breaks(record_property):
    record_property("fact", "3 pages left")
    assert False

def test_silent():
    pass
"""


def run(tmp_path: Path, *options: str) -> list[str]:
    (tmp_path / "test_recording.py").write_text(RECORDING)
    command = [sys.executable, "-m", "pytest", "-p", "recorded_facts", "--rootdir", tmp_path]
    finished = subprocess.run(
        [*command, "-p", "no:cacheprovider", *options, tmp_path],
        env={"PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=False,
    )
    return finished.stdout.splitlines()


def test_each_fact_is_printed_once_with_its_test_at_the_end_of_a_quiet_run(tmp_path: Path) -> None:
    lines = run(tmp_path, "-q")
    start = next(number for number, line in enumerate(lines) if "recorded facts" in line)
    facts = ["test_counts: 7 kills, 0 wrong answers", "test_breaks: 3 pages left"]
    assert sorted(lines[start + 1 : start + 3]) == sorted(facts)
    assert [lines.count(fact) for fact in facts] == [1, 1]
    assert not any("not a fact" in line for line in lines[start:])


def test_without_facts_there_is_no_section(tmp_path: Path) -> None:
    assert not any("recorded facts" in line for line in run(tmp_path, "-k", "silent"))
