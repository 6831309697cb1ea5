"""Tables with a line a method and a column a metric, and what their paired intervals tell apart."""

from collections.abc import Mapping
from dataclasses import dataclass

from benchmarks.report.markdown import Row, interval, of, one, table
from benchmarks.reuse.tables import REFERENCE

PAIRED = f"over_{REFERENCE}"
ENOUGH_CASES = 30
"""Below it a bootstrap interval is narrower than what it stands for, and nothing is judged."""


@dataclass(frozen=True)
class ByMethod:
    """The body of a section: for each set a table of the metrics that `columns` names.

    The last column is the difference of the metric `compared` from the reference's, case by case;
    the sentence below says of which methods that difference has an interval without 0. Where full
    recompute is not above the floor without documents, it says that instead.
    """

    columns: Mapping[str, str]
    compared: str
    lower_is_better: bool

    def __call__(self, rows: list[Row]) -> str:
        sets = sorted({row["set"] for row in rows})
        return "\n\n".join(self._set(of(rows, set=name), name) for name in sets)

    def _set(self, rows: list[Row], name: str) -> str:
        wanted = of(rows, metric=self.compared)
        difference = f"{self.columns[self.compared]} minus {REFERENCE}'s"
        head = ("method", "recomputed", "cases", *self.columns.values(), difference)
        lines = [self._line(rows, row) for row in wanted]
        said = self._on_the_floor(wanted) or self._told_apart(wanted)
        return "\n\n".join([f"**{name}**", table(head, lines), said])

    def _line(self, rows: list[Row], row: Row) -> tuple[str, ...]:
        scores = [one(rows, method=row["method"], metric=metric) for metric in self.columns]
        cells = ["" if score is None else interval(score) for score in scores]
        difference = interval(row[PAIRED]) if PAIRED in row else ""
        share, cases = f"{row['share_recomputed']:.1%}", str(row["num_cases"])
        return (row["method"], share, cases, *cells, difference)

    def _on_the_floor(self, rows: list[Row]) -> str:
        """What to say unless full recompute is clear of no documents, on the good side."""
        full, floor = one(rows, method="full"), one(rows, method="no-documents")
        if full is None or floor is None:
            return ""
        better, worse = (floor, full) if self.lower_is_better else (full, floor)
        if better["low"] > worse["high"]:
            return ""
        return (
            f"Full recompute ({interval(full)}) does not stand clear of no documents "
            f"({interval(floor)}) on these {full['num_cases']} cases, so no method is judged by "
            "them."
        )

    def _told_apart(self, rows: list[Row]) -> str:
        """The methods whose interval is below 0, above 0 and around it, where cases are enough."""
        paired = [row for row in rows if PAIRED in row]
        enough = [row for row in paired if row["num_cases"] >= ENOUGH_CASES]
        below = [row["method"] for row in enough if row[PAIRED]["high"] < 0]
        above = [row["method"] for row in enough if row[PAIRED]["low"] > 0]
        around = [row["method"] for row in enough if row["method"] not in (*below, *above)]
        better, worse = (below, above) if self.lower_is_better else (above, below)
        parts = {"better": better, "worse": worse, "not told apart": around}
        few = [row["method"] for row in paired if row not in enough]
        if few:
            parts[f"not judged, with fewer than {ENOUGH_CASES} cases"] = few
        said = "; ".join(
            f"{name}: {', '.join(methods) or 'none'}" for name, methods in parts.items()
        )
        return f"By {self.columns[self.compared]}, against {REFERENCE} on the same cases, {said}."
