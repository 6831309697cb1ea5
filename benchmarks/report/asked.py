"""What the project asked of itself, beside what was measured."""

from typing import Any

from benchmarks.report.markdown import Row, one, table

LEAST = "more than {:.2f}"
Results = dict[str, dict[str, Any] | None]


def asked_table(results: Results) -> str:
    """A row a demand; one that lacks a measurement says so."""
    rows = {name: (found or {"rows": []})["rows"] for name, found in results.items()}
    lines = [
        *_link(rows["cost"]),
        _guided(rows["modes"]),
        *_peers(rows["peers"]),
        *_serving(rows["serving"]),
    ]
    return table(("asked", "measured", "holds"), lines)


def _line(
    words: str, value: float | None, bound: float, *, at_most: bool, measured: str = "{:.2f}"
) -> list[str]:
    asked = f"{words}: {'at most' if at_most else 'at least'} {bound:g}"
    if value is None:
        return [asked, "not measured", ""]
    holds = value <= bound if at_most else value >= bound
    if not holds and measured is LEAST:
        return [asked, measured.format(value), "not decided"]
    return [asked, _beside(bound, value, measured), "yes" if holds else "no"]


def _beside(bound: float, value: float, measured: str) -> str:
    """The value; in three digits where two make it the bound, of which it is not."""
    if value != bound and round(value, 2) == bound:
        measured = measured.replace(".2f", ".3f")
    return measured.format(value)


def _ratio(above: Row | None, below: Row | None, field: str = "median") -> float | None:
    if above is None or below is None or not below[field]:
        return None
    return float(above[field] / below[field])


def _held_over_broke(above: Row | None, below: Row | None) -> float | None:
    if above is None or below is None or not below.get("broke"):
        return None
    return float(above["held"] / below["broke"])


def _link(rows: list[Row]) -> list[list[str]]:
    full = one(rows, experiment="link tokens", method="full")
    link = one(rows, experiment="link tokens", method="legolink-16")
    price = None if link is None else link["median"] / link["limit_median"]
    return [
        _line(
            "full prefill / link of 8 x 512 + 32, k = 16",
            _ratio(full, link),
            20,
            at_most=False,
        ),
        _line("that link / as many plain tokens", price, 1.8, at_most=True),
    ]


def _guided(rows: list[Row]) -> list[str]:
    guided = one(rows, experiment="modes", method="guided-16")
    over = None if guided is None else guided["over"]
    return _line("`guided` / LegoLink-16, as many tokens recomputed", over, 1.35, at_most=True)


def _peers(rows: list[Row]) -> list[list[str]]:
    def found(task: str, name: str) -> Row | None:
        return one(rows, experiment=task, method=name)

    full, single = found("full prefill", "legokv"), found("decode, one sequence", "legokv")
    eight = found("decode, eight sequences", "legokv")
    together = _ratio(single, eight)
    compared = (
        ("full prefill, vLLM / legokv", _ratio(found("full prefill", "vllm"), full), 1, False),
        ("llama.cpp / legokv", _ratio(found("full prefill", "llama_cpp"), full), 2.5, False),
        (
            "vLLM's whole-prefix hit / link with k = 0",
            _ratio(found("whole prefix cached", "vllm"), found("link, k = 0", "legokv")),
            1,
            False,
        ),
        (
            "decode of one sequence, legokv / llama.cpp",
            _ratio(single, found("decode, one sequence", "llama_cpp")),
            1.5,
            True,
        ),
        (
            "tokens a second, eight sequences / one",
            None if together is None else 8 * together,
            3,
            False,
        ),
    )
    return [_line(words, value, bound, at_most=most) for words, value, bound, most in compared]


def _serving(rows: list[Row]) -> list[list[str]]:
    def held(name: str) -> Row | None:
        return one(rows, experiment="highest rate", set="fits", method=name)

    def added(name: str) -> float | None:
        row = one(rows, experiment="overhead", method=name)
        return None if row is None else 1000 * float(row["median"])

    rate = _ratio(held("legolink-16"), held("full"), "held")
    measured = "{:.2f}"
    if rate is None:
        # Full kept the bound at no rate that was tried: it would at one below the least of them.
        rate, measured = _held_over_broke(held("legolink-16"), held("full")), LEAST
    words = "request rate within a p90 TTFT of 6 s, LegoLink-16 / full"
    return [
        _line(words, rate, 7, at_most=False, measured=measured),
        _line("the server adds to the first token, ms", added("first token"), 5, at_most=True),
        _line("and to each streamed token, ms", added("each token"), 0.5, at_most=True),
    ]
