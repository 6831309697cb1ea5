"""The report's plots, drawn from the results as SVG: one for a light page, one for a dark."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from benchmarks.plots import front, panels
from benchmarks.plots.schemes import DARK, LIGHT, Scheme

Results = dict[str, dict[str, Any] | None]


def all_plots(results: Results, folder: Path) -> set[str]:
    """Draw what there are results for; the names of what was drawn."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = set()
    for scheme in (LIGHT, DARK):
        for name, figure in figures(results, scheme).items():
            with mpl.rc_context(scheme.style()):
                figure.savefig(folder / f"{name}{scheme.suffix}.svg", metadata={"Date": None})
            plt.close(figure)
            drawn.add(name)
    return drawn


def figures(results: Results, scheme: Scheme) -> dict[str, Figure]:
    """The plots that there are results for, by name."""
    rows = {name: found["rows"] for name, found in results.items() if found is not None}
    made = {}
    with mpl.rc_context(scheme.style()):
        for name, (needed, draw) in _PLOTS.items():
            figure = draw(scheme, *(rows.get(part, []) for part in needed))
            if figure is not None:
                made[name] = figure
    return made


_PLOTS: dict[str, tuple[tuple[str, ...], Callable[..., Figure | None]]] = {
    "accuracy_ttft": (("fidelity", "cost"), front.accuracy_ttft),
    "modes_ttft": (("heads", "modes"), front.accuracy_ttft),
    "ttft_length": (("cost",), panels.ttft_length),
    "throughput_latency": (("serving",), panels.throughput_latency),
    "error_by_position": (("kv_error",), panels.error_by_position),
    "error_by_layer": (("kv_error",), panels.error_by_layer),
}
