"""Tables with a column a method: error by place within the chunk, attention by part of a prompt."""

from benchmarks.report.markdown import Row, interval, of, one, table

PARTS = {
    "first": "the prompt's very first token",
    "1": "the first token of every later chunk",
    "2": "their first 2",
    "4": "their first 4",
    "16": "their first 16",
    "chunks": "all tokens of later chunks",
}


def errors(rows: list[Row]) -> str:
    """For each set, of keys and of values: a line for the places from one token on."""
    parts = []
    for name, metric in dict.fromkeys((row["set"], row["metric"]) for row in rows):
        found = of(rows, set=name, metric=metric)
        places = {start: f"{start}" for start in dict.fromkeys(r["from_token"] for r in found)}
        parts.append(f"**{name}, {metric}**\n\n{_grid(found, 'from_token', places, 'from token')}")
    return "\n\n".join(parts)


def attention(rows: list[Row]) -> str:
    """For each set a line for each part of the prompt."""
    parts = []
    for name in dict.fromkeys(row["set"] for row in rows):
        found = [{**row, "part": row["metric"].rpartition(" ")[2]} for row in of(rows, set=name)]
        words = f"**{name}: share of the question's attention on**"
        parts.append(f"{words}\n\n{_grid(found, 'part', PARTS, 'part')}")
    return "\n\n".join(parts)


def _grid(rows: list[Row], field: str, places: dict[object, str], head: str) -> str:
    methods = list(dict.fromkeys(row["method"] for row in rows))
    lines = []
    for place, words in places.items():
        cells = [one(rows, method=method, **{field: place}) for method in methods]
        lines.append((words, *("" if cell is None else interval(cell) for cell in cells)))
    return table((head, *methods), lines)
