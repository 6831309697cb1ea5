"""Small Markdown tables and numbers with their spread."""

from collections.abc import Iterable, Sequence
from typing import Any

Row = dict[str, Any]


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def milliseconds(row: Row) -> str:
    """Median and range of a row in seconds."""
    median, low, high = (1000 * row[name] for name in ("median", "low", "high"))
    return f"{median:,.1f} ({low:,.1f}–{high:,.1f})"  # noqa: RUF001 - a range in prose


def interval(row: Row, digits: int = 3) -> str:
    """Mean and 95 % interval."""
    return f"{row['mean']:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def of(rows: Iterable[Row], **wanted: object) -> list[Row]:
    """The rows whose fields have these values."""
    return [row for row in rows if all(row.get(k) == v for k, v in wanted.items())]


def one(rows: Iterable[Row], **wanted: object) -> Row | None:
    found = of(rows, **wanted)
    return found[0] if found else None
