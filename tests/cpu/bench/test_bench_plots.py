"""The plots can be read: each name apart, each panel of one set and with its number of cases."""

import random
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.text import Text
from paths import ROOT

from benchmarks.plots.draw import all_plots, figures
from benchmarks.plots.front import Point, front, near
from benchmarks.plots.schemes import DARK, LIGHT
from benchmarks.report.words import PLOTS

METHODS = (
    "a method with a rather long name",
    *(f"method-{number}" for number in range(12)),
    "legolink-16",
    *(f"method-{number}" for number in range(12, 23)),
)


def results() -> dict[str, Any]:
    """The slower a method the nearer, but for chance and for the compared one; two sets of each."""
    chance = random.Random(3)
    times = {method: 0.07 * 1.17**number for number, method in enumerate(METHODS)}
    fidelity, serving = [], []
    for name, cases in (("essays", 50), ("hotpotqa", 200)):
        for method in METHODS:
            far = 1.0 if method == "legolink-16" else 0.2 * chance.random()
            mean = 0.05 / times[method] + far
            numbers = {"mean": mean, "low": 0.9 * mean, "high": 1.1 * mean, "num_cases": cases}
            fidelity.append({"set": name, "metric": "kl", "method": method, **numbers})
    fidelity[0]["num_cases"] = 20
    for name, requests in (("fits", 12), ("too large", 48)):
        probe = {"experiment": "rate", "set": name, "method": "full", "rate": 0.5}
        serving.append({**probe, "time_to_first_token_p90": 3.0, "requests": requests})
    cost = [
        {"experiment": "every method", "method": method, "median": seconds, "count": 4}
        for method, seconds in times.items()
    ]
    modes = [{**row, "experiment": "modes"} for row in cost[:14]]
    heads = [row for row in fidelity if row["method"] in METHODS[:14]]
    rows = {"fidelity": fidelity, "cost": cost, "serving": serving, "heads": heads, "modes": modes}
    return {name: {"rows": found} for name, found in rows.items()}


@pytest.fixture(scope="module")
def drawn() -> Iterator[dict[str, Figure]]:
    found = figures(results(), LIGHT)
    for figure in found.values():
        figure.draw_without_rendering()
    yield found
    plt.close("all")


def point(method: str, seconds: float, mean: float, width: float = 0.0) -> Point:
    return Point(method, seconds, mean, mean - width, mean + width, 40)


def test_the_front_is_what_nothing_beats_in_time_and_distance():
    fast, slower, exact = point("fast", 1, 0.5), point("slower", 2, 0.3), point("exact", 9, 0.0)
    beaten, as_near = point("beaten", 3, 0.4), point("as near", 4, 0.3)
    assert front([exact, beaten, as_near, slower, fast]) == [fast, slower, exact]


def test_near_the_front_is_what_an_interval_does_not_tell_from_it():
    best = [point("fast", 1, 0.5), point("slower", 2, 0.3)]
    assert near(point("wide", 3, 0.4, 0.11), best)
    assert not near(point("narrow", 3, 0.4, 0.09), best)
    assert near(point("between", 1.5, 0.6, 0.11), best)


def test_names_lie_apart_within_their_panel_and_on_no_point(drawn: dict[str, Figure]):
    for axes in (*drawn["accuracy_ttft"].axes, *drawn["modes_ttft"].axes):
        # Of the text alone: the stroke to its point may pass under another name.
        boxes = [Text.get_window_extent(text) for text in axes.texts]
        assert len(boxes) > 5
        assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))
        window = axes.get_window_extent()
        dots = [axes.transData.transform(line.get_xydata()) for line in axes.lines]
        for box in boxes:
            assert window.x0 < box.x0
            assert box.x1 < window.x1
            assert not any(box.count_contains(some) for some in dots)


def test_only_methods_on_or_near_the_front_and_the_compared_one_are_named(
    drawn: dict[str, Figure],
):
    for axes in drawn["accuracy_ttft"].axes:
        counted = {line.get_label(): len(line.get_xdata()) for line in axes.lines}
        others = counted.pop("the other methods")
        shown = sum(count for words, count in counted.items() if not words.startswith("_"))
        assert (others > 5, shown + others) == (True, len(METHODS))
        named = {text.get_text() for text in axes.texts}
        assert "legolink-16" in named
        assert len(named) == shown + 1


def test_a_panel_is_of_one_set_and_says_how_many_cases(drawn: dict[str, Figure]):
    titles = {name: [a.get_title(loc="left") for a in f.axes] for name, f in drawn.items()}
    assert titles["accuracy_ttft"] == [
        "essays (20 to 50 cases a method)",
        "hotpotqa (200 cases a method)",
    ]
    assert titles["throughput_latency"] == [
        "fits (12 requests a point)",
        "too large (48 requests a point)",
    ]


def test_each_plot_is_drawn_for_a_light_page_and_a_dark_one(tmp_path: Path):
    found = {**results(), "kv_error": None}
    plots = {"accuracy_ttft", "modes_ttft", "throughput_latency"}
    assert all_plots(found, tmp_path) == plots
    light = (tmp_path / "accuracy_ttft.svg").read_text()
    dark = (tmp_path / "accuracy_ttft-dark.svg").read_text()
    assert (LIGHT.ink in light, DARK.ink in light) == (True, False)
    assert (LIGHT.ink in dark, DARK.ink in dark) == (False, True)
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{plot}{scheme.suffix}.svg" for plot in plots for scheme in (LIGHT, DARK)
    }


def test_every_plot_that_is_published_is_in_the_report():
    plots = ROOT / "docs" / "plots"
    named = {plot for shown in PLOTS.values() for plot in shown}
    assert {file.stem for file in plots.iterdir()} == named | {f"{plot}-dark" for plot in named}
