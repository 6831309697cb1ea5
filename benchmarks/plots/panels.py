"""The plots that are lines in panels: time by length, latency by load, error by place and layer."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from benchmarks.plots.schemes import Scheme

Row = dict[str, Any]
PLACES = (0, 1, 4, 16, 64, 256)
LENGTHS = {
    "length, fixed chunk": "documents of 512 tokens",
    "length, fixed count": "eight documents",
}


def ttft_length(scheme: Scheme, cost: list[Row]) -> Figure | None:
    """Time to first token over the prompt's length, a panel for each way to lengthen it."""
    panels = _split(cost, "experiment", LENGTHS)
    if not panels:
        return None
    looks = scheme.looks(_values(cost, "method"))
    figure, all_axes = _figure(len(panels))
    for axes, (name, rows) in zip(all_axes, panels.items(), strict=True):
        for method, look in looks.items():
            _line(
                axes,
                _of(rows, "method", method),
                ("prompt_tokens", "median"),
                method,
                look,
            )
        axes.set(yscale="log", xlabel="prompt, tokens")
        axes.set_title(f"{LENGTHS[name]} ({span(row['count'] for row in rows)} runs a point)")
    all_axes[0].set_ylabel("time to first token, median, s")
    return _finished(figure)


def throughput_latency(scheme: Scheme, serving: list[Row]) -> Figure | None:
    """The p90 of the time to first token over the load, a panel a set, with the bound asked."""
    rates = [r for r in serving if r["experiment"] == "rate" and "time_to_first_token_p90" in r]
    panels = _split(rates, "set", sorted(_values(rates, "set"), key=len))
    if not panels:
        return None
    bounds = {row["bound_seconds"] for row in serving if row["experiment"] == "highest rate"}
    looks = scheme.looks(_values(rates, "method"))
    figure, all_axes = _figure(len(panels), sharex=True)
    for axes, (name, rows) in zip(all_axes, panels.items(), strict=True):
        for method, look in looks.items():
            _line(
                axes,
                _of(rows, "method", method),
                ("rate", "time_to_first_token_p90"),
                method,
                look,
            )
        for bound in bounds:
            axes.axhline(bound, color=scheme.ink, linestyle=":", label=f"the bound, {bound:g} s")
        axes.set(xscale="log", yscale="log", xlabel="requests a second")
        plain_numbers(axes.xaxis)
        axes.set_title(_wrapped(f"{name} ({span(r['requests'] for r in rows)} requests a point)"))
    all_axes[0].set_ylabel("time to first token, p90, s")
    return _finished(figure)


def error_by_position(scheme: Scheme, errors: list[Row]) -> Figure | None:
    """A panel a set: a colour a method, solid for keys, dashed for values."""
    panels = _split(errors, "set", sorted(_values(errors, "set")))
    if not panels:
        return None
    looks = scheme.looks(_values(errors, "method"))
    figure, all_axes = _figure(len(panels))
    for axes, (name, rows) in zip(all_axes, panels.items(), strict=True):
        for method, look in looks.items():
            for kind, style in (("keys", "-"), ("values", "--")):
                found = [r for r in _of(rows, "method", method) if r["metric"].endswith(kind)]
                found = [{**row, "place": row["from_token"] + 1} for row in found]
                styled = {**look, "linestyle": style}
                _line(axes, found, ("place", "mean"), f"{method}, {kind}", styled)
        axes.set(xscale="log", xlabel="token's place in its chunk, from 1")
        plain_numbers(axes.xaxis)
        axes.set_title(f"{name} ({span(row['num_cases'] for row in rows)} cases)")
    all_axes[0].set_ylabel("relative error (0: as in full)")
    return _finished(figure)


def error_by_layer(scheme: Scheme, errors: list[Row]) -> Figure | None:
    """The naive method's, whose every place is as it was stored: a panel a kind, a line a place."""
    naive = _of(_of(errors, "method", "naive"), "set", "essays")
    panels = _split(naive, "metric", ("relative error, keys", "relative error, values"))
    if not panels:
        return None
    figure, all_axes = _figure(len(panels))
    for axes, (name, rows) in zip(all_axes, panels.items(), strict=True):
        shown = [row for row in rows if row["from_token"] in PLACES]
        for number, row in enumerate(shown):
            look = {"color": scheme.ordered(number, len(shown)), "marker": "os^DvP"[number]}
            words = f"from token {row['from_token'] + 1}"
            axes.plot(row["by_layer"], label=words, markevery=(number, 6), **look)
        axes.set_xlabel("layer")
        cases = span(row["num_cases"] for row in shown)
        kind = name.rpartition(" ")[2]
        axes.set_title(f"essays: {kind}, nothing recomputed ({cases} cases)")
    all_axes[0].set_ylabel("relative error (0: as in full)")
    return _finished(figure)


def span(counts: Iterable[int]) -> str:
    """One number, or the least and the greatest."""
    low, *between = sorted(set(counts))
    return f"{low} to {between[-1]}" if between else str(low)


def plain_numbers(axis: Axis) -> None:
    """0.1, 0.2, 0.5, 1 on a logarithmic axis instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend(figure: Figure) -> None:
    """One below all panels, each line in it once."""
    lines: dict[str, Line2D] = {}
    for axes in figure.axes:
        for line, words in zip(*axes.get_legend_handles_labels(), strict=True):
            lines.setdefault(words, line)
    columns = len(lines) if len(lines) < 6 else 3
    figure.legend(lines.values(), lines, loc="outside lower left", ncols=columns, fontsize=8)


def _figure(num_panels: int, *, sharex: bool = False) -> tuple[Figure, list[Axes]]:
    """Panels side by side with one scale."""
    size = (1 + 4 * num_panels, 3.9)
    figure, axes = plt.subplots(
        1, num_panels, figsize=size, sharex=sharex, sharey=True, squeeze=False, layout="constrained"
    )
    return figure, list(axes[0])


def _finished(figure: Figure) -> Figure:
    if figure.axes[0].get_yscale() == "log":
        plain_numbers(figure.axes[0].yaxis)
    legend(figure)
    return figure


def _line(
    axes: Axes, rows: Sequence[Row], fields: tuple[str, str], words: str, look: dict[str, Any]
) -> None:
    if rows:
        x, y = ([row[field] for row in rows] for field in fields)
        axes.plot(x, y, label=words, **look)


def _split(rows: Sequence[Row], field: str, values: Iterable[Any]) -> dict[Any, list[Row]]:
    """The rows by those of `values` that there are rows of, in that order."""
    parts = {value: _of(rows, field, value) for value in values}
    return {value: part for value, part in parts.items() if part}


def _of(rows: Sequence[Row], field: str, value: object) -> list[Row]:
    return [row for row in rows if row[field] == value]


def _values(rows: Sequence[Row], field: str) -> list[Any]:
    return list(dict.fromkeys(row[field] for row in rows))


def _wrapped(words: str) -> str:
    return textwrap.fill(words, 44)
