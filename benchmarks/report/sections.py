"""The tables of each result file."""

from collections.abc import Callable

from benchmarks.report import by_place, serving
from benchmarks.report.by_method import ByMethod
from benchmarks.report.markdown import Row, interval, milliseconds, of, table

ENOUGH_TIMES = 3
FIDELITY = {"kl": "KL, nats", "top1": "top-1 agreement", "delta_nll": "rise of the answer's NLL"}
LONG = {"gap_closed": "gap closed", **FIDELITY}
QUALITY = {"exact_match": "exact match", "f1": "F1"}


def cost(rows: list[Row]) -> str:
    """Times beside their limit, the price of compiling, the split of one request, memory."""
    parts = []
    for name in ("link tokens", "length, fixed chunk", "length, fixed count"):
        found = of(rows, experiment=name)
        if found:
            parts.append(f"**By {name}**\n\n" + _prefills(found))
    found = of(rows, experiment="every method")
    if found:
        parts.append("**Every method, in the reuse benchmarks' harness**\n\n" + _methods(found))
    found = [row for row in rows if row["experiment"] in ("compile", "time split")]
    if found:
        parts.append("**Compiling, and where one request's time goes**\n\n" + _splits(found))
    found = of(rows, experiment="memory")
    if found:
        lines = [(row["method"], f"{row['median'] / 2**20:.1f}") for row in found]
        parts.append("**A request's own KV**\n\n" + table(("method", "MiB"), lines))
    return "\n\n".join(parts)


def modes(rows: list[Row]) -> str:
    """Times, and times LegoLink-16's of the same round."""
    lines = []
    for row in rows:
        over = f"{row['over']:.2f} ({row['over_low']:.2f} to {row['over_high']:.2f})"
        lines.append((row["method"], f"{row['recomputed_tokens']:,}", milliseconds(row), over))
    columns = ("method", "recomputed tokens", "ms, median (range)", "over legolink-16 (range)")
    return table(columns, lines)


def _prefills(rows: list[Row]) -> str:
    columns = ("method", "prompt", "computed", "ms, median (range)", "limit, ms", "over limit")
    return table(
        columns,
        [
            (
                row["method"],
                f"{row['prompt_tokens']:,}",
                f"{row['computed_tokens']:,}",
                milliseconds(row),
                f"{1000 * row['limit_median']:,.1f}",
                f"{row['median'] / row['limit_median']:.2f}",
            )
            for row in rows
        ],
    )


def _methods(rows: list[Row]) -> str:
    lines = [(r["method"], f"{r['share_recomputed']:.1%}", milliseconds(r)) for r in rows]
    return table(("method", "recomputed", "ms, median (range)"), lines)


def _splits(rows: list[Row]) -> str:
    lines = []
    for row in rows:
        reuses = row["unit"] == "reuses"
        words = f"{row['median']:.2f} reuses" if reuses else f"{milliseconds(row)} ms"
        lines.append((row["method"], str(row.get("x", "")), words))
    return table(("what", "chunks come from", "median (range)"), lines)


def peers(rows: list[Row]) -> str:
    lines = [
        (
            row["experiment"],
            row["version"],
            str(row["count"]),
            milliseconds(row),
            _over(row),
        )
        for row in rows
        if row["experiment"] != "skipped"
    ]
    columns = (
        "task",
        "engine",
        "times",
        "ms, median (range)",
        "over legokv (95 %, of 3 or more)",
    )
    reasons = [f"Skipped: {row['reason']}" for row in of(rows, experiment="skipped")]
    return "\n\n".join([table(columns, lines), *reasons])


def _over(row: Row) -> str:
    if "over_legokv" not in row:
        return ""
    low, high = row["over_legokv_low"], row["over_legokv_high"]
    if row["count"] < ENOUGH_TIMES:
        return f"{row['over_legokv']:.2f}"
    return f"{row['over_legokv']:.2f} ({low:.2f} to {high:.2f})"


def stored_forms(rows: list[Row]) -> str:
    """How far int8 is from the model's type, and what either form takes."""
    fidelity = [
        (row["set"], row["metric"], interval(row, 4), str(row["num_cases"]))
        for row in of(rows, experiment="fidelity")
    ]
    forms = [
        (
            row["method"],
            f"{row['bytes_a_token']:,.1f}",
            milliseconds(row["store"]),
            milliseconds(row["load"]),
        )
        for row in of(rows, experiment="cost")
    ]
    columns = ("form", "bytes a token", "ms to store 1,024 tokens", "ms to load them")
    return "\n\n".join(
        [table(("set", "metric", "mean (95 %)", "cases"), fidelity), table(columns, forms)]
    )


BODIES: dict[str, Callable[[list[Row]], str]] = {
    "fidelity": ByMethod(FIDELITY, compared="kl", lower_is_better=True),
    "heads": ByMethod(LONG, compared="kl", lower_is_better=True),
    "answers": ByMethod(QUALITY, compared="f1", lower_is_better=False),
    "modes": modes,
    "long_documents": ByMethod(LONG, compared="kl", lower_is_better=True),
    "quality": ByMethod(QUALITY, compared="f1", lower_is_better=False),
    "kv_error": by_place.errors,
    "attention_mass": by_place.attention,
    "stored_forms": stored_forms,
    "cost": cost,
    "serving": serving.section,
    "peers": peers,
    "askers": peers,
}
