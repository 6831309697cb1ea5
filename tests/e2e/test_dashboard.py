"""The dashboard asks for nothing that the server does not show, and leaves nothing out."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from scrape import Scrape, scrape
from server import RunningServer

DASHBOARD = Path(__file__).resolve().parents[2] / "examples/monitoring/grafana/legokv.json"
_SERIES = re.compile(r"\b(?P<name>(?:legokv|nv)_\w+)\{(?P<labels>[^}]*)\}")
_MATCHER = re.compile(r'(\w+)(?:=~|=)"([^"]*)"')
_GROUPS = re.compile(r"\bby \(([^)]*)\)")
# Prometheus adds it to all it scrapes; Grafana puts the chosen servers into the variable.
SERVER_LABEL = ("instance", "$instance")


def expressions() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def selected(expression: str) -> Iterator[tuple[str, dict[str, str]]]:
    """Names in an expression with the labels they are chosen by."""
    for match in _SERIES.finditer(expression):
        yield match["name"], dict(_MATCHER.findall(match["labels"]))


@pytest.fixture(scope="module")
def shown(server: RunningServer) -> Scrape:
    server.ask(text_input="Who?", max_tokens=1)
    return scrape(server)


def test_there_are_panels_with_expressions() -> None:
    assert len(expressions()) > 20


@pytest.mark.parametrize("expression", expressions())
def test_every_series_of_a_panel_is_on_the_metrics_port(shown: Scrape, expression: str) -> None:
    found = list(selected(expression))
    assert found
    for name, labels in found:
        assert (name, SERVER_LABEL[1]) == (name, labels.pop(SERVER_LABEL[0]))
        series = shown.series(name)
        assert any(labels.items() <= one.items() for one in series), name
        for label in " ,".join(_GROUPS.findall(expression)).replace(",", " ").split():
            assert all(label in one for one in series), f"{name} has no label {label}"


def test_every_metric_of_ours_is_in_some_panel(shown: Scrape) -> None:
    used = {name for expression in expressions() for name, _ in selected(expression)}
    ours = {name for name, _ in shown.values if name.startswith("legokv_")}
    parts = re.compile("_(bucket|sum|count)$")
    assert {parts.sub("", name) for name in ours} == {
        parts.sub("", name) for name in used if name.startswith("legokv_")
    }
