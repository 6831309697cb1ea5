"""The dashboard asks for nothing that the server does not show, and leaves nothing out."""

import json
import re
from collections.abc import Iterator

import pytest
from paths import ROOT
from prometheus_server import Prometheus, asking
from scrape import Scrape, scrape
from server import RunningServer

DASHBOARD = ROOT / "examples/monitoring/grafana/legokv.json"
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


@pytest.fixture(scope="module")
def prometheus(
    server: RunningServer, documents: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Prometheus]:
    """A Prometheus that saw a server before and after some answers."""
    with asking(server, tmp_path_factory.mktemp("prometheus")) as one:
        one.wait_for("count(legokv_requests_running)")
        for number in (2, 3, 4):
            server.ask(text_input="Who?", document_ids=documents[:number], max_tokens=8)
        one.wait_for("increase(legokv_generated_tokens_total[20s])")
        yield one


@pytest.mark.parametrize("expression", expressions())
def test_prometheus_computes_every_panel(prometheus: Prometheus, expression: str) -> None:
    places = {"$instance": ".+", "$__rate_interval": "1m", "$__range": "1m"}
    for name, value in places.items():
        expression = expression.replace(name, value)
    values = prometheus.values(expression)
    assert values
    if "time_to_first_token" in expression or "inter_token" in expression:
        assert all(0 < value < 60 for value in values)
    elif "cached" in expression:
        assert all(0 < value < 1 for value in values)
    elif "generated_tokens" in expression:
        assert values[0] > 0


def test_every_metric_of_ours_is_in_some_panel(shown: Scrape) -> None:
    used = {name for expression in expressions() for name, _ in selected(expression)}
    ours = {name for name, _ in shown.values if name.startswith("legokv_")}
    parts = re.compile("_(bucket|sum|count)$")
    assert {parts.sub("", name) for name in ours} == {
        parts.sub("", name) for name in used if name.startswith("legokv_")
    }
