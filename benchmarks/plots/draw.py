"""The report's plots, as SVG and PNG on a transparent background, in colours for light and dark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

Row = dict[str, Any]
Results = dict[str, dict[str, Any] | None]
MID = "#808890"
COLOURS = ("#3b8ed0", "#e07b39", "#3fa66b", "#b36bc4", "#c9a227", "#d05a6e", "#5aa9a3")
STYLE = {
    "axes.prop_cycle": mpl.cycler(color=COLOURS),
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), MID),
    **dict.fromkeys(("xtick.color", "ytick.color", "grid.color"), MID),
    "axes.grid": True,
    "grid.alpha": 0.25,
    "savefig.transparent": True,
    "svg.hashsalt": "legokv",
    "legend.framealpha": 0.0,
}


def all_plots(results: Results, folder: Path) -> set[str]:
    """Draw what there are results for; the names of what was drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = {name: found["rows"] for name, found in results.items() if found is not None}
    drawn = set()
    for name, (needed, draw) in _PLOTS.items():
        if not all(part in rows for part in needed):
            continue
        with mpl.rc_context(STYLE):
            figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
            if draw(axes, *(rows[part] for part in needed)):
                figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
                figure.savefig(folder / f"{name}.png", dpi=150)
                drawn.add(name)
            plt.close(figure)
    return drawn


def _accuracy_ttft(axes: Axes, fidelity: list[Row], cost: list[Row]) -> bool:
    times = {r["method"]: r["median"] for r in cost if r["experiment"] == "every method"}
    wanted = [r for r in fidelity if r["metric"] == "delta_nll" and r["method"] in times]
    sets = sorted({row["set"] for row in wanted})
    for number, name in enumerate(sets):
        for row in (r for r in wanted if r["set"] == name):
            colour, x = COLOURS[number % len(COLOURS)], times[row["method"]]
            bars = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
            axes.errorbar(x, row["mean"], bars, fmt="o", color=colour, markersize=4)
            at = {"xytext": (4, 2), "textcoords": "offset points", "rotation": 25}
            axes.annotate(row["method"], (x, row["mean"]), fontsize=6, color=colour, **at)
        axes.plot([], [], "o", color=COLOURS[number % len(COLOURS)], label=name)
    axes.set(xscale="log", xlabel="time to first token of 8 x 512 + 32 tokens, s")
    axes.set_ylabel("rise of the gold answer's NLL")
    return _legend(axes, bool(wanted))


def _ttft_length(axes: Axes, cost: list[Row]) -> bool:
    for name, line in (("length, fixed chunk", "-"), ("length, fixed count", "--")):
        found = [row for row in cost if row["experiment"] == name]
        for number, method in enumerate(dict.fromkeys(row["method"] for row in found)):
            one = [row for row in found if row["method"] == method]
            x, y = [r["prompt_tokens"] for r in one], [r["median"] for r in one]
            words = f"{method}, {'512 a chunk' if line == '-' else '8 chunks'}"
            axes.plot(x, y, line, marker="o", markersize=3, color=COLOURS[number], label=words)
    axes.set(yscale="log", xlabel="prompt tokens", ylabel="time to first token, s")
    return _legend(axes, bool(axes.lines))


def _throughput_latency(axes: Axes, serving: list[Row]) -> bool:
    rates = [r for r in serving if r["experiment"] == "rate" and "time_to_first_token_p90" in r]
    for label in dict.fromkeys((row["set"], row["method"]) for row in rates):
        one = [row for row in rates if (row["set"], row["method"]) == label]
        y = [row["time_to_first_token_p90"] for row in one]
        axes.plot([r["rate"] for r in one], y, "o-", markersize=3, label=f"{label[1]}, {label[0]}")
    axes.set(xscale="log", yscale="log", xlabel="requests a second", ylabel="p90 TTFT, s")
    return _legend(axes, bool(rates))


def _error_by_position(axes: Axes, errors: list[Row]) -> bool:
    """A colour a method, a line a kind, a marker a set."""
    methods, sets = (sorted({row[field] for row in errors}) for field in ("method", "set"))
    for label in dict.fromkeys((r["method"], r["metric"], r["set"]) for r in errors):
        method, metric, name = label
        one = [row for row in errors if (row["method"], row["metric"], row["set"]) == label]
        x, y = [row["from_token"] + 1 for row in one], [row["mean"] for row in one]
        kind, line = ("keys", "-") if "keys" in metric else ("values", "--")
        look = {"color": COLOURS[methods.index(method)], "marker": "os^D"[sets.index(name)]}
        axes.plot(x, y, line, markersize=3, label=f"{method}, {kind}, {name}", **look)
    axes.set(xscale="log", xlabel="place within the chunk (1: first)", ylabel="relative error")
    return _legend(axes, bool(errors))


def _error_by_layer(axes: Axes, errors: list[Row]) -> bool:
    """The naive method's, whose every place is as it was stored; one line a place."""
    found = [r for r in errors if r["method"] == "naive" and r["set"] == "essays"]
    places = [
        start for start in (0, 1, 4, 16, 64, 256) if any(r["from_token"] == start for r in found)
    ]
    for number, start in enumerate(places):
        for row in (row for row in found if row["from_token"] == start):
            keys = "keys" in row["metric"]
            label = f"from token {start}, {'keys' if keys else 'values'}"
            axes.plot(row["by_layer"], "-" if keys else "--", color=COLOURS[number], label=label)
    axes.set(xlabel="layer", ylabel="relative error, essays, nothing recomputed")
    return _legend(axes, bool(found))


def _legend(axes: Axes, anything: bool) -> bool:
    if anything:
        axes.figure.legend(fontsize=6, loc="outside right upper")
    return anything


_PLOTS: dict[str, tuple[tuple[str, ...], Callable[..., bool]]] = {
    "accuracy_ttft": (("fidelity", "cost"), _accuracy_ttft),
    "ttft_length": (("cost",), _ttft_length),
    "throughput_latency": (("serving",), _throughput_latency),
    "error_by_position": (("kv_error",), _error_by_position),
    "error_by_layer": (("kv_error",), _error_by_layer),
}
