"""README's measured numbers: the blocks between its marks, written from the result files."""

import re
from typing import Any

from benchmarks.report.asked import Results
from benchmarks.report.markdown import Row, of, one, table

LINKED = {"legolink-16": "k = 16", "legolink-2": "k = 2", "naive": "k = 0"}
TASKS = {
    "full prefill": "nothing cached, 4,128 tokens",
    "whole prefix cached": "the whole prefix cached",
    "documents reordered": "all documents cached, their order changed (legokv: linked, k = 16)",
}
PEERS = {
    "legokv": "legokv",
    "vllm": "vLLM's CPU build",
    "llama_cpp": "llama.cpp (4-bit)",
    "transformers": "transformers",
}
SERVED = {
    "legolink-16": "with linking",
    "full": "computing everything",
    "prefix": "with prefix caching",
}
NOT_MEASURED = "Not measured."

_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def with_numbers(text: str, results: Results) -> str:
    """README's text with every marked block as the results say now, and the device of each."""
    rows = {name: (found or {"rows": []})["rows"] for name, found in results.items()}
    blocks = {
        "cost": _on(results["cost"], _cost(rows["cost"])),
        "serving": _on(results["serving"], _serving(rows["serving"])),
        "peers": _on(results["peers"], _peers(rows["peers"])),
        "reuse": _on(results["fidelity"], _reuse(rows["fidelity"], rows["quality"])),
    }
    return _BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[4], text)


def _on(found: dict[str, Any] | None, block: str) -> str:
    """The block with the device it was measured on."""
    if found is None or block == NOT_MEASURED:
        return NOT_MEASURED
    about = found["about"]
    return f"{block}\n\n*{about['device']}; {about['model']}, {about['dtype']}; {about['date']}.*"


def _cost(rows: list[Row]) -> str:
    full = one(rows, experiment="link tokens", method="full")
    found = {name: one(rows, experiment="link tokens", method=name) for name in LINKED}
    link, compiled = found["legolink-16"], one(rows, method="reuses until paid")
    if full is None or link is None or compiled is None:
        return NOT_MEASURED
    lines = [_timed(f"everything: {full['computed_tokens']:,} tokens", full)]
    for name, words in LINKED.items():
        row = found[name]
        if row is not None:
            lines.append(_timed(f"linked, {words}: {row['computed_tokens']} of them", row))
    limit = f"{1000 * link['limit_median']:,.0f} ms"
    words = f"for comparison, {link['computed_tokens']} tokens and nothing cached"
    return (
        table(("what is computed", "median", "range"), [*lines, (words, limit, "")])
        + f"\n\nLinking at k = 16 is {full['median'] / link['median']:.0f} times faster than "
        f"computing everything, and takes {link['median'] / link['limit_median']:.1f} times as "
        f"long as its {link['computed_tokens']} tokens would alone.\nCompiling the documents is "
        f"paid once, before; {compiled['median']:.1f} such questions win it back."
    )


def _timed(words: str, row: Row) -> tuple[str, str, str]:
    median, low, high = (1000 * row[name] for name in ("median", "low", "high"))
    return words, f"{median:,.0f} ms", f"{low:,.0f} to {high:,.0f}"


def _serving(rows: list[Row]) -> str:
    first, each = (
        one(rows, experiment="overhead", method=name) for name in ("first token", "each token")
    )
    if first is None or each is None:
        return NOT_MEASURED
    parts = []
    for method, words in SERVED.items():
        rates = [row["rate"] for row in of(rows, experiment="rate", set="fits", method=method)]
        if rates:
            best = one(rows, experiment="highest rate", set="fits", method=method)
            parts.append(f"{_p90(rows, method, (best or {}).get('held') or min(rates))} {words}")
    added = ["{1} ({2})".format(*_timed("", row)) for row in (first, each)]
    return (
        "Under load (48 documents, six to a question, Poisson arrivals, client and server on the "
        f"same cores) the p90 of the time to the first token was {', '.join(parts)}:\neach at "
        "the highest rate that was tried and kept it within 6 s, or the lowest if none did.\nThe "
        f"way through Triton adds {added[0]}, median and range, to the first token and {added[1]} "
        "to each streamed one here, where it shares the cores with the computing "
        "([log](docs/log.md))."
    )


def _p90(rows: list[Row], method: str, rate: float) -> str:
    row = one(rows, experiment="rate", set="fits", method=method, rate=rate)
    found = None if row is None else row.get("time_to_first_token_p90")
    seconds = "no answer" if found is None else f"{found:.1f} s"
    return f"{seconds} at {rate:.2g} questions a second"


def _peers(rows: list[Row]) -> str:
    names = [name for name in PEERS if of(rows, method=name, experiment="full prefill")]
    if not names:
        return NOT_MEASURED
    lines = []
    for task, words in TASKS.items():
        cells = [one(rows, experiment=task, method=name) for name in names]
        if not any(cells):
            continue
        times = ["" if cell is None else f"{1000 * cell['median']:,.0f} ms" for cell in cells]
        lines.append((words, *times))
    counts = [row["count"] for row in of(rows, experiment="full prefill")]
    times = table(("", *(PEERS[name] for name in names)), lines)
    return f"{times}\n\nMedians of {min(counts)} to {max(counts)} times."


def _reuse(fidelity: list[Row], quality: list[Row]) -> str:
    shown = {
        "essays, 512-token chunks": of(fidelity, set="essays", metric="kl"),
        "HotpotQA, short passages": of(fidelity, set="hotpotqa", metric="kl"),
        "facts": of(quality, set="facts", metric="exact_match"),
    }
    if not all(shown.values()):
        return NOT_MEASURED
    methods = {"full": "computed in full"}
    methods |= {name: f"linked, {words}" for name, words in LINKED.items()}
    methods |= {"no-documents": "no documents"}
    heads = [f"{words} ({rows[0]['num_cases']})" for words, rows in shown.items()]
    lines = [
        (words, *(_mean(one(rows, method=method)) for rows in shown.values()))
        for method, words in methods.items()
    ]
    return table(("", *heads), lines)


def _mean(row: Row | None) -> str:
    if row is None:
        return ""
    mean, low, high = (row[name] for name in ("mean", "low", "high"))
    if row["metric"] == "exact_match":
        return f"{mean:.0%} ({100 * low:.0f} to {100 * high:.0f})"
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
