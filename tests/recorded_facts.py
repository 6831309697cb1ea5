"""A pytest plugin: facts that tests record are printed when a run ends, at any verbosity.

    def test_a_plan_is_built(record_property):
        record_property("fact", "llama: 345 layers, of them 3 KvImport; 13.9 MiB")

A fact is what the thing tested said of itself: a count, a size, a version. `tests/conftest.py`
loads this; `pytest -p recorded_facts` does too.
"""

from collections.abc import Iterator

import pytest

FACT = "fact"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for group in terminalreporter.stats.values() for report in group]
    lines = [line for report in reports for line in _facts(report)]
    if lines:
        terminalreporter.section("recorded facts")
    for line in lines:
        terminalreporter.write_line(line)


def _facts(report: object) -> Iterator[str]:
    """A test's facts, from the report of its call alone: that of its teardown has them again."""
    if isinstance(report, pytest.TestReport) and report.when == "call":
        test = report.nodeid.rpartition("::")[2]
        yield from (f"{test}: {value}" for name, value in report.user_properties if name == FACT)
