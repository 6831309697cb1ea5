"""Puts names beside points so that none lies on another, on a point, on a line or outside."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

Place = tuple[float, float]
Box = NDArray[np.float64]
"""Left, bottom, right and top, in pixels."""
ABOVE = (30, 45, 60, 0, 80, 100, 130, -30)
BELOW = (-150, -135, -120, 180, -100, -80, -60, 150)
_MARKER = 3.5
_LINE = 1.0
_BESIDE = 14


@dataclass(frozen=True)
class Name:
    """What to write, for which place in the data, and in which directions from it, in degrees."""

    text: str
    place: Place
    degrees: tuple[int, ...]


def write_names(axes: Axes, names: Sequence[Name], lines: Sequence[Sequence[Place]]) -> None:
    """Write every name at the nearest free place; one that is further off gets a stroke to it.

    The figure's layout must be final: places are looked for as it will be drawn. `lines` are what
    names keep off: points, and lines that go level or upright from end to end.
    """
    axes.figure.draw_without_rendering()
    taken = [_around(axes, line) for line in lines]
    for name in sorted(names, key=lambda name: (name.place[0], -name.place[1])):
        taken.append(_write(axes, name, np.array(taken)))


def _write(axes: Axes, name: Name, taken: NDArray[np.float64]) -> Box:
    look = {"textcoords": "offset points", "fontsize": 8, "va": "center"}
    tried = axes.annotate(name.text, name.place, (0, 0), **look)
    width, height = tried.get_window_extent().size
    tried.remove()
    boxes = {offset: _box(axes, name, offset, (width, height)) for offset in _offsets(name)}
    window = np.array(axes.get_window_extent().extents)
    best = min(boxes, key=lambda o: (round(_hidden(boxes[o], window, taken)), math.hypot(*o)))
    stroke = {"arrowstyle": "-", "linewidth": 0.5, "shrinkA": 0, "shrinkB": 3}
    stroke["color"] = tried.get_color()
    look["ha"] = "left" if best[0] >= 0 else "right"
    look["arrowprops"] = stroke if math.hypot(*best) > _BESIDE else None
    axes.annotate(name.text, name.place, best, **look).set_in_layout(False)
    return boxes[best]


def _offsets(name: Name) -> Iterator[Place]:
    """Where the near end of a name may be, in typographic points from its own."""
    for distance in (7, 10, 14, 20, 28, 38, 50):
        for degrees in name.degrees:
            angle = math.radians(degrees)
            yield round(distance * math.cos(angle), 3), round(distance * math.sin(angle), 3)


def _box(axes: Axes, name: Name, offset: Place, size: tuple[float, float]) -> Box:
    """The name's box with its near end at `offset`."""
    x, y = axes.transData.transform(name.place) + np.array(offset) * axes.figure.dpi / 72
    left = x if offset[0] >= 0 else x - size[0]
    return np.array((left, y - size[1] / 2, left + size[0], y + size[1] / 2))


def _hidden(box: Box, window: Box, taken: NDArray[np.float64]) -> float:
    """Pixels of `box` that lie outside the window or on something."""
    whole = float(np.prod(box[2:] - box[:2]))
    return whole - _shared(box, window[None]) + _shared(box, taken)


def _shared(box: Box, others: NDArray[np.float64]) -> float:
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(sides, 0), axis=1).sum())


def _around(axes: Axes, ends: Sequence[Place]) -> Box:
    """A box around a point or a line of the data."""
    pixels = axes.transData.transform(list(ends))
    half = (_LINE if len(ends) > 1 else _MARKER) * axes.figure.dpi / 72
    return np.concatenate((pixels.min(axis=0) - half, pixels.max(axis=0) + half))
