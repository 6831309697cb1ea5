"""The plot of distance from full recompute over time: a panel a data set, the front as a line."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.plots.labels import ABOVE, BELOW, Name, write_names
from benchmarks.plots.panels import Row, legend, plain_numbers, span
from benchmarks.plots.schemes import Scheme
from benchmarks.reuse.tables import REFERENCE


@dataclass(frozen=True)
class Point:
    """A method: what it takes and how far off it is, with its 95 % interval."""

    method: str
    seconds: float
    mean: float
    low: float
    high: float
    num_cases: int


def front(points: Sequence[Point]) -> list[Point]:
    """The points than which none is both faster and nearer, in the order of time."""
    found: list[Point] = []
    for point in sorted(points, key=lambda p: (p.seconds, p.mean)):
        if not found or point.mean < found[-1].mean:
            found.append(point)
    return found


def near(point: Point, best: Sequence[Point]) -> bool:
    """Whether the point's interval reaches the front at its time."""
    return point.low <= min(p.mean for p in best if p.seconds <= point.seconds)


TIMES = ("every method", "modes")


def accuracy_ttft(scheme: Scheme, distances: list[Row], times: list[Row]) -> Figure | None:
    """KL over time to first token; None if no method has both."""
    sets = _points(distances, times)
    if not sets:
        return None
    size = (7.5, 0.8 + 3.4 * len(sets))
    figure, panels = plt.subplots(
        len(sets), figsize=size, sharex=True, squeeze=False, layout="constrained"
    )
    for axes, (name, points) in zip(panels[:, 0], sets.items(), strict=True):
        _panel(axes, scheme, name, points)
    panels[-1, 0].set_xlabel("time to first token of 8 documents of 512 tokens and 32 more, s")
    legend(figure)
    for axes, points in zip(panels[:, 0], sets.values(), strict=True):
        _name(axes, points)
    return figure


def _points(distances: list[Row], times: list[Row]) -> dict[str, list[Point]]:
    seconds = {r["method"]: r["median"] for r in times if r["experiment"] in TIMES}
    sets: dict[str, list[Point]] = {}
    for row in sorted(distances, key=lambda row: row["set"]):
        if row["metric"] == "kl" and row["method"] in seconds:
            numbers = (row[field] for field in ("mean", "low", "high", "num_cases"))
            point = Point(row["method"], seconds[row["method"]], *numbers)
            sets.setdefault(row["set"], []).append(point)
    return sets


def _panel(axes: Axes, scheme: Scheme, name: str, points: list[Point]) -> None:
    best = front(points)
    reached = [p for p in points if p not in best and near(p, best)]
    others = [p for p in points if p not in best and p not in reached]
    x, y = [p.seconds for p in best], [p.mean for p in best]
    axes.step(x, y, where="post", color=scheme.lines[0], linewidth=1.3)
    groups = (
        ("on the front: none is both faster and nearer", best, scheme.lines[0], "o"),
        ("near: its 95 % interval reaches the front", reached, scheme.lines[1], "D"),
        ("the other methods", others, scheme.grey, "s"),
    )
    for words, group, colour, marker in groups:
        look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "", "zorder": 3}
        axes.plot([p.seconds for p in group], [p.mean for p in group], label=words, **look)
        if group is not others:
            ends = ([getattr(p, end) for p in group] for end in ("low", "high"))
            axes.vlines([p.seconds for p in group], *ends, color=colour, linewidth=1, alpha=0.6)
    axes.set(xscale="log", ylabel="KL from full recompute, nats")
    axes.set_title(f"{name} ({span(p.num_cases for p in points)} cases a method)")
    plain_numbers(axes.xaxis)
    axes.margins(x=0.13)


def _name(axes: Axes, points: list[Point]) -> None:
    """Names those on or near the front, and the one that all are compared with."""
    best = front(points)
    shown = [p for p in points if near(p, best)]
    names = [
        Name(p.method, (p.seconds, p.mean), BELOW if p in best else ABOVE)
        for p in points
        if p in shown or p.method == REFERENCE
    ]
    dots = [((p.seconds, p.mean),) for p in points]
    bars = [((p.seconds, p.low), (p.seconds, p.high)) for p in shown]
    level = [((a.seconds, a.mean), (b.seconds, a.mean)) for a, b in pairwise(best)]
    upright = [((b.seconds, a.mean), (b.seconds, b.mean)) for a, b in pairwise(best)]
    write_names(axes, names, [*dots, *bars, *level, *upright])
