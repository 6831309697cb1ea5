"""README's measured numbers: the blocks between its marks, written from the result files."""

import re
from typing import Any

from benchmarks.peers.tasks import MANY_ASKERS
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
MODES = {
    "naive": ("alone", "nothing"),
    "legolink-16": ("alone", "`legolink`, 16 tokens"),
    "behind-head": ("behind the head", "nothing"),
    "behind-head+guided-ranked-10": ("behind the head", "`guided-ranked`, 10 %"),
    "behind-head+guided-ranked-drift-8": ("behind the head", "`guided-ranked-drift`, 8 tokens"),
    "behind-head+guided-ranked-drift-16": ("behind the head", "`guided-ranked-drift`, 16 tokens"),
    "behind-chat-head": ("behind another head", "nothing"),
    "behind-chat-head+guided-ranked-drift-8": (
        "behind another head",
        "`guided-ranked-drift`, 8 tokens",
    ),
    "behind-chat-head+guided-ranked-drift-16": (
        "behind another head",
        "`guided-ranked-drift`, 16 tokens",
    ),
}
"""Of each method, how documents are compiled and what is recomputed."""
NOT_MEASURED = "Not measured."

_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n\n)(.*?)(\n\n<!-- end -->)", re.DOTALL)


def with_numbers(text: str, results: Results) -> str:
    """README's text with every marked block as the results say now, and the device of each."""
    rows = {name: (found or {"rows": []})["rows"] for name, found in results.items()}
    blocks = {
        "cost": _on(results["cost"], _cost(rows["cost"])),
        "serving": _on(results["serving"], _serving(rows["serving"])),
        "peers": _on(results["peers"], _peers(rows["peers"])),
        "askers": _on(results["askers"], _askers(rows["askers"])),
        "heads": _on(results["heads"], _heads(rows["heads"], rows["modes"], rows["answers"])),
        "reuse": _on(results["fidelity"], _reuse(rows["fidelity"], rows["quality"])),
    }
    return _BLOCK.sub(lambda found: found[1] + blocks[found[2]] + found[4], text)


def _on(found: dict[str, Any] | None, block: str) -> str:
    """The block with the device it was measured on."""
    if found is None or block == NOT_MEASURED:
        return NOT_MEASURED
    about = found["about"]
    return f"{block}\n\n*{about['device']};\n{about['model']}, {about['dtype']}; {about['date']}.*"


def _cost(rows: list[Row]) -> str:
    full = one(rows, experiment="link tokens", method="full")
    found = {name: one(rows, experiment="link tokens", method=name) for name in LINKED}
    link, compiled = found["legolink-16"], one(rows, method="reuses until paid")
    if full is None or link is None or compiled is None:
        return NOT_MEASURED
    lines = [(*_timed(f"everything: {full['computed_tokens']:,} tokens", full), "1")]
    for name, words in LINKED.items():
        row = found[name]
        if row is not None:
            timed = _timed(f"linked, {words}: {row['computed_tokens']} of them", row)
            lines.append((*timed, f"{full['median'] / row['median']:.0f}"))
    limit = link["limit_median"]
    words = f"for comparison, {link['computed_tokens']} tokens and nothing cached"
    lines.append((words, f"{1000 * limit:,.0f} ms", "", f"{full['median'] / limit:.0f}"))
    return (
        table(("what is computed", "median", "range", "times as fast"), lines)
        + f"\n\nLinking at k = 16 takes {link['median'] / limit:.1f} times as long as its "
        f"{link['computed_tokens']} tokens would alone.\nCompiling the documents is paid once, "
        f"before; {compiled['median']:.1f} such questions win it back."
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
    added = [_timed("to the first token", first), _timed("to each streamed token", each)]
    return "\n\n".join(
        (
            "48 documents, six to a question, Poisson arrivals, client and server on the same "
            "cores.\nEach row is of the highest rate that was tried and kept 6 s, or of the "
            "lowest if none did.",
            _held(rows),
            table(("the way through Triton adds", "median", "range"), added),
            "Triton shares the cores with the computing here ([log](docs/log.md)).",
        )
    )


def _held(rows: list[Row]) -> str:
    """A row a method: the rate it kept the bound at, and the latency then."""
    lines = []
    for method, words in SERVED.items():
        rates = [row["rate"] for row in of(rows, experiment="rate", set="fits", method=method)]
        if rates:
            best = one(rows, experiment="highest rate", set="fits", method=method)
            held = (best or {}).get("held")
            rate = held or min(rates)
            lines.append((words, f"{rate:.2g}", _p90(rows, method, rate), "yes" if held else "no"))
    head = ("under load", "questions a second", "p90 of the time to the first token", "within 6 s")
    return table(head, lines)


def _p90(rows: list[Row], method: str, rate: float) -> str:
    row = one(rows, experiment="rate", set="fits", method=method, rate=rate)
    found = None if row is None else row.get("time_to_first_token_p90")
    return "no answer" if found is None else f"{found:.1f} s"


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


def _askers(rows: list[Row]) -> str:
    names = [name for name in PEERS if of(rows, method=name)]
    if not names:
        return NOT_MEASURED
    lines = []
    for task in MANY_ASKERS:
        cells = [one(rows, experiment=task.name, method=name) for name in names]
        if not any(cells):
            continue
        lines.append((task.name, *("" if cell is None else _seconds(cell) for cell in cells)))
    return table(("", *(PEERS[name] for name in names)), lines)


def _seconds(row: Row) -> str:
    return f"{row['median']:.1f} s ({row['low']:.1f} to {row['high']:.1f})"


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


def _heads(rows: list[Row], times: list[Row], answers: list[Row]) -> str:
    """A row a method: its time, what part of naive reuse's distance to full it takes away, and how
    many facts come out.
    """
    gaps = of(rows, metric="gap_closed")
    lines = []
    for method, (compiled, recomputed) in MODES.items():
        hotpotqa, essays = (one(gaps, method=method, set=name) for name in ("hotpotqa", "essays"))
        if hotpotqa is not None:
            essay = "" if compiled == "behind the head" else _percent(essays)
            timed = one(times, method=method)
            time = "" if timed is None else f"{timed['over']:.2f}"
            right = one(answers, set="facts", metric="exact_match", method=method)
            facts = _percent(right)
            lines.append((compiled, recomputed, time, _percent(hotpotqa), essay, facts))
    if not lines:
        return NOT_MEASURED
    counts = [one(gaps, method="naive", set=name) for name in ("hotpotqa", "essays")]
    cases = [0 if row is None else row["num_cases"] for row in counts]
    judged = one(answers, set="facts", metric="exact_match", method="naive")
    cases.append(0 if judged is None else judged["num_cases"])
    heads = (f"HotpotQA ({cases[0]})", f"essays ({cases[1]})", f"facts, exact ({cases[2]})")
    return table(("documents are compiled", "recomputed", "time", *heads), lines)


def _percent(row: Row | None) -> str:
    if row is None:
        return ""
    mean, low, high = (100 * row[name] for name in ("mean", "low", "high"))
    return f"{mean:.0f}% ({low:.0f} to {high:.0f})"


def _mean(row: Row | None) -> str:
    if row is None:
        return ""
    mean, low, high = (row[name] for name in ("mean", "low", "high"))
    if row["metric"] == "exact_match":
        return f"{mean:.0%} ({100 * low:.0f} to {100 * high:.0f})"
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"
