"""The section of the running server: latency by rate, where it goes, and what could be reused."""

from collections.abc import Iterable

from benchmarks.report.markdown import Row, milliseconds, of, table

PARTS = ("lookup", "queue", "load", "compile", "link")


def section(rows: list[Row]) -> str:
    rates = of(rows, experiment="rate")
    return "\n\n".join(
        (
            _latencies(rates),
            "Where the time to the first token goes, each part's median in ms:",
            _parts(row for row in rates if "lookup_seconds_p50" in row),
            "What the server adds to one request alone, of an engine in a process beside it:",
            _added(of(rows, experiment="overhead")),
            "The highest rate that held the bound, and the lowest that broke it (0: none did):",
            _highest(of(rows, experiment="highest rate")),
            "What caches without limits could reuse of the workload's documents:",
            _reusable(of(rows, experiment="reusable")),
        )
    )


def _latencies(rates: list[Row]) -> str:
    columns = ("set", "method", "requests/s", "requests (refused)", "TTFT p50, p90, p99, s")
    columns += ("ms per output token", "reused, by quarter of the run")
    lines = (
        (
            *_probe(row),
            f"{row['requests']} ({row['refused']})",
            _three(row, "time_to_first_token", 1),
            _three(row, "time_per_output_token", 1000),
            " ".join(f"{share:.0%}" for share in row["cached_share_by_quarter"]),
        )
        for row in rates
    )
    return table(columns, lines)


def _parts(rates: Iterable[Row]) -> str:
    lines = (
        (*_probe(row), *(f"{1000 * row[f'{part}_seconds_p50']:,.1f}" for part in PARTS))
        for row in rates
    )
    return table(("set", "method", "requests/s", *PARTS), lines)


def _added(rows: list[Row]) -> str:
    lines = [(f"to the {row['method']}", str(row["count"]), milliseconds(row)) for row in rows]
    return table(("added", "times", "ms, median (range)"), lines)


def _highest(rows: list[Row]) -> str:
    lines = [
        (
            row["set"],
            row["method"],
            f"p90 TTFT of {row['bound_seconds']:g} s",
            f"{row['held']:.3g}",
            f"{row['broke'] or 0:.3g}",
        )
        for row in rows
    ]
    return table(("set", "method", "bound", "held", "broke"), lines)


def _reusable(rows: list[Row]) -> str:
    shares = ("first_document", "longest_prefix", "any_place")
    lines = [(row["set"], *(f"{row[name]:.0%}" for name in shares)) for row in rows]
    return table(("set", "first document", "longest prefix", "any place"), lines)


def _probe(row: Row) -> tuple[str, str, str]:
    return row["set"], row["method"], f"{row['rate']:.3g}"


def _three(row: Row, name: str, scale: float) -> str:
    if f"{name}_p50" not in row:
        return ""
    return " · ".join(f"{scale * row[f'{name}_p{p}']:.2f}" for p in (50, 90, 99))
