"""The plots' two looks, for a light page and a dark one; a marker goes with every colour."""

from collections.abc import Collection
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import matplotlib as mpl

METHODS = ("legolink-16", "full", "prefix", "naive", "legolink-2", "cacheblend-15")
"""Those that have the same colour and marker in every plot."""
MARKERS = "os^DvP"


@dataclass(frozen=True)
class Scheme:
    """Colours for one kind of page; `suffix` stands behind the names of its files."""

    suffix: str
    ink: str
    grey: str
    lines: tuple[str, ...]
    ramp: tuple[float, float]

    def style(self) -> dict[str, Any]:
        """Settings of matplotlib."""
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(inked, self.ink),
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titlelocation": "left",
            "axes.titleweight": "bold",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "grid.color": self.grey,
            "grid.alpha": 0.3,
            "grid.linewidth": 0.6,
            "lines.markersize": 4.5,
            "legend.frameon": False,
            "savefig.transparent": True,
            "svg.hashsalt": "legokv",
        }

    def looks(self, methods: Collection[str]) -> dict[str, dict[str, Any]]:
        """Colour and marker of every method's line."""
        others = [method for method in methods if method not in METHODS]
        colours = cycle(zip(self.lines, MARKERS, strict=True))
        looks = dict(zip((*METHODS, *others), colours, strict=False))
        return {
            method: {"color": colour, "marker": marker}
            for method, (colour, marker) in looks.items()
            if method in methods
        }

    def ordered(self, number: int, of: int) -> Any:
        """A colour for a thing among `of` that have an order."""
        low, high = self.ramp
        return mpl.colormaps["viridis"](low + (high - low) * number / max(of - 1, 1))


# Okabe and Ito's colours, darker on white and lighter on black.
LIGHT = Scheme(
    "",
    "#24292f",
    "#8c959f",
    ("#0072b2", "#d55e00", "#007a5a", "#a8437f", "#7a5c00", "#57606a"),
    (0.0, 0.85),
)
DARK = Scheme(
    "-dark",
    "#d0d7de",
    "#7d8590",
    ("#56b4e9", "#f08c4a", "#2dc99a", "#e79ac4", "#f0c24b", "#b1bac4"),
    (1.0, 0.3),
)
