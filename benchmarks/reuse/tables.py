"""Rows for benchmarks/results from raw rows: means over cases with bootstrap intervals."""

from collections.abc import Callable, Sequence
from typing import Any

from benchmarks.record.results import Row
from benchmarks.reuse.bootstrap import Interval, closed_interval, mean_interval
from benchmarks.reuse.kv_error import EDGES

REFERENCE = "legolink-16"
"""The method that every other is compared with, case by case."""

Cases = dict[str, dict[str, Any]]
ByMethod = dict[str, Cases]


def metric_rows(found: ByMethod, set_name: str, metrics: Sequence[str]) -> list[Row]:
    """A row a method and metric; where the reference has the same cases, the difference too."""
    rows = []
    for method, cases in found.items():
        share = mean_interval([row["share"] for row in cases.values()]).mean
        for metric in metrics:
            about = {"method": method, "set": set_name, "metric": metric}
            interval = mean_interval([row[metric] for row in cases.values()])
            rows.append({**about, **_numbers(interval), "share_recomputed": round(share, 4)})
            rows[-1] |= _paired(cases, found.get(REFERENCE, {}), metric)
    return rows


def needle_rows(found: ByMethod, metrics: Sequence[str]) -> list[Row]:
    """The facts set again, by the place of the fact in its passage."""
    rows = []
    for place in ("start", "middle", "end"):
        part = _part(found, f"-{place}-")
        rows += metric_rows(part, f"facts, {place}", metrics)
    return rows


def long_document_rows(found: ByMethod, metrics: Sequence[str]) -> list[Row]:
    """All cases, each set of them, those with one document and those with several.

    With what part of naive reuse's KL a method takes away, `gap_closed`.
    """
    parts = {
        "all": lambda key: True,
        "going on": lambda key: "/going-on-" in key,
        "asked": lambda key: "/asked-" in key,
        "one document": lambda key: key.endswith("-1"),
        "several documents": lambda key: not key.endswith("-1"),
    }
    rows = []
    for name, is_part in parts.items():
        part = _where(found, is_part)
        rows += [*gap_rows(part, name), *metric_rows(part, name, metrics)]
    return rows


def gaps_by_set(found: ByMethod, sets: Sequence[str], metrics: Sequence[str]) -> list[Row]:
    """The metrics of each set, with what part of naive reuse's KL a method takes away."""
    rows = []
    for name in sets:
        part = of_set(found, name)
        rows += [*gap_rows(part, name), *metric_rows(part, name, metrics)]
    return rows


def gap_rows(found: ByMethod, set_name: str) -> list[Row]:
    """A row a method, over the cases that naive reuse has too; none where it has no gap."""
    rows = []
    for method, cases in found.items():
        shared = [key for key in cases if key in found.get("naive", {})]
        if shared:
            left, gap = ([one[key]["kl"] for key in shared] for one in (cases, found["naive"]))
            if sum(gap):
                about = {"method": method, "set": set_name, "metric": "gap_closed"}
                rows.append({**about, **_numbers(closed_interval(left, gap))})
    return rows


def kv_error_rows(found: ByMethod, set_name: str) -> list[Row]:
    """A row a method, kind and bin of places within the chunk: over layers, and by layer."""
    rows = []
    for method, cases in found.items():
        for kind in ("keys", "values"):
            grids = [row["kv_error"][kind] for row in cases.values() if "kv_error" in row]
            for number, start in enumerate(EDGES):
                columns = [_column(grid, number) for grid in grids if number < len(grid[0])]
                if columns:
                    about = {"method": method, "set": set_name, "metric": f"relative error, {kind}"}
                    rows.append({**about, "from_token": start, **_over_layers(columns)})
    return rows


def head_mass_rows(found: ByMethod, set_name: str) -> list[Row]:
    """A row a method and part of the prompt: over layers, and by layer."""
    rows = []
    for method, cases in found.items():
        masses = [row["head_mass"] for row in cases.values() if "head_mass" in row]
        for part in masses[0] if masses else ():
            about = {"method": method, "set": set_name, "metric": f"attention mass, {part}"}
            rows.append({**about, **_over_layers([mass[part] for mass in masses])})
    return rows


def of_set(found: ByMethod, set_name: str) -> ByMethod:
    """Only the cases of one set, and only methods that have any."""
    return _part(found, f"{set_name}/")


def _part(found: ByMethod, inside_key: str) -> ByMethod:
    return _where(found, lambda key: inside_key in key)


def _where(found: ByMethod, is_part: Callable[[str], bool]) -> ByMethod:
    """Only the cases whose keys are of the part, and only methods that have any."""
    parts = {
        method: {key: row for key, row in cases.items() if is_part(key)}
        for method, cases in found.items()
    }
    return {method: cases for method, cases in parts.items() if cases}


def _paired(cases: Cases, reference: Cases, metric: str) -> Row:
    """How much a method is above the reference over the cases that both have."""
    shared = [key for key in cases if key in reference]
    if not shared or cases is reference:
        return {}
    interval = mean_interval([cases[key][metric] - reference[key][metric] for key in shared])
    numbers = {"mean": interval.mean, "low": interval.low, "high": interval.high}
    return {f"over_{REFERENCE}": {name: round(value, 5) for name, value in numbers.items()}}


def _over_layers(by_case: list[list[float]]) -> Row:
    """by_case: for each case a number a layer."""
    interval = mean_interval([sum(layers) / len(layers) for layers in by_case])
    by_layer = [round(sum(layer) / len(by_case), 5) for layer in zip(*by_case, strict=True)]
    return {**_numbers(interval), "by_layer": by_layer}


def _column(grid: list[list[float]], number: int) -> list[float]:
    return [layer[number] for layer in grid]


def _numbers(interval: Interval) -> Row:
    return {
        "mean": round(interval.mean, 5),
        "low": round(interval.low, 5),
        "high": round(interval.high, 5),
        "num_cases": interval.num_cases,
    }
