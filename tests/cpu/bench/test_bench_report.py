"""The report marks what is stale, says how to measure what is missing, and claims no more."""

import re

import pytest

from benchmarks.record.about import ROOT, commit, measured_since
from benchmarks.record.results import read_results
from benchmarks.report import readme
from benchmarks.report.__main__ import report
from benchmarks.report.asked import asked_table
from benchmarks.report.provenance import COMMANDS, provenance
from benchmarks.report.words import SECTIONS

ABOUT = {
    "device": "a processor, 2 threads",
    "commit": "abc1234",
    "command": "python -m benchmarks.cost",
    "date": "2026-11-24",
    "model": "llama",
    "dtype": "bfloat16",
    "num_cases": 4,
}
OVERHEADS = ("first token", "each token")
NOTHING = dict.fromkeys(SECTIONS)


def link_row(method: str, median: float, limit: float) -> dict[str, object]:
    times = {"median": median, "low": median, "high": median, "limit_median": limit}
    tokens = {"prompt_tokens": 4128, "computed_tokens": 144, "unit": "seconds"}
    return {"experiment": "link tokens", "method": method, "x": 4096, **times, **tokens}


def test_a_missing_result_is_a_line_with_the_command_that_measures_it():
    text = report(NOTHING, lambda commit: False, set())
    for command in COMMANDS.values():
        assert f"Not measured: `{command}`" in text
    assert "| yes |" not in text


def test_a_result_of_another_commit_is_marked_and_one_of_this_is_not():
    results = {"about": ABOUT, "rows": []}
    assert "From another commit" in provenance("cost", results, lambda commit: True)
    assert "does not have" in provenance("cost", results, lambda commit: None)
    assert "**" not in provenance("cost", results, lambda commit: False)
    dirty = {"about": {**ABOUT, "commit": "abc1234-dirty"}, "rows": []}
    assert "uncommitted changes" in provenance("cost", dirty, lambda commit: False)


def test_this_commit_is_not_another_and_an_unknown_one_is_neither():
    if (ROOT / ".git").exists():
        assert measured_since(commit()) is False
    assert measured_since("0" * 40) is None


def test_a_demand_holds_only_if_its_number_does():
    rows = [link_row("full", 4.0, 4.0), link_row("legolink-16", 0.2, 0.1)]
    lines = asked_table({**NOTHING, "cost": {"about": ABOUT, "rows": rows}}).splitlines()
    assert lines[2].endswith("| 20.00 | yes |")
    assert lines[3].endswith("| 2.00 | no |")
    assert all("not measured" in line for line in lines[4:])


def test_a_mode_s_time_stands_beside_what_it_keeps_and_what_was_asked_of_it():
    over = {"over_low": 1.2, "over_high": 1.5, "recomputed_tokens": 128, "experiment": "modes"}
    times = {"median": 0.1, "low": 0.09, "high": 0.2, "count": 5}
    modes = [
        {**over, **times, "method": name, "over": ratio}
        for name, ratio in (("legolink-16", 1.0), ("guided-16", 1.36), ("naive", 0.4))
    ]
    gap = {"metric": "gap_closed", "low": 0.4, "high": 0.6, "num_cases": 200}
    heads = [
        {**gap, "set": name, "method": method, "mean": 0.5}
        for name in ("hotpotqa", "essays")
        for method in ("naive", "legolink-16")
    ]
    right = {"metric": "exact_match", "low": 0.2, "high": 0.4, "mean": 0.3, "num_cases": 100}
    answers = [{**right, "set": "facts", "method": m} for m in ("naive", "legolink-16")]
    results = {
        **NOTHING,
        "answers": {"about": ABOUT, "rows": answers},
        "modes": {"about": ABOUT, "rows": modes},
        "heads": {"about": ABOUT, "rows": heads},
    }
    assert "at most 1.35 | 1.36 | no |" in asked_table(results)
    shown = readme.with_numbers("<!-- measured: heads -->\n\n-\n\n<!-- end -->", results)
    kept = "50% (40 to 60) | 50% (40 to 60) | 30% (20 to 40)"
    assert f"| alone | `legolink`, 16 tokens | 1.00 | {kept} |" in shown
    text = report({**results, "heads": None, "answers": None}, lambda c: False, set())
    assert "| guided-16 | 128 | 100.0 (90.0–200.0) | 1.36 (1.20 to 1.50) |" in text  # noqa: RUF001


@pytest.mark.parametrize(
    ("ratio", "shown"), [(1.3546, "1.355 | no"), (1.3473, "1.347 | yes"), (1.35, "1.35 | yes")]
)
def test_what_two_digits_would_make_the_bound_is_told_in_three(ratio, shown):
    rows = [{"experiment": "modes", "method": "guided-16", "over": ratio}]
    table = asked_table({**NOTHING, "modes": {"about": ABOUT, "rows": rows}})
    assert f"at most 1.35 | {shown} |" in table


def test_int8_is_shown_with_what_it_saves_and_how_far_it_is_off():
    times = {"median": 0.02, "low": 0.01, "high": 0.03, "count": 5}
    form = {"experiment": "cost", "bytes_a_token": 11880.0, "store": times, "load": times}
    far = {"experiment": "fidelity", "set": "essays", "metric": "kl", "num_cases": 7}
    rows = [{**far, "mean": 0.002, "low": 0.001, "high": 0.003}, {**form, "method": "int8"}]
    text = report(
        {**NOTHING, "stored_forms": {"about": ABOUT, "rows": rows}}, lambda c: False, set()
    )
    assert "| essays | kl | 0.0020 (0.0010 to 0.0030) | 7 |" in text
    assert "| int8 | 11,880.0 | 20.0 (10.0–30.0) | 20.0 (10.0–30.0) |" in text  # noqa: RUF001


def test_every_section_says_what_it_does_not_show():
    results = {**NOTHING, "cost": {"about": ABOUT, "rows": [link_row("full", 4.0, 4.0)]}}
    text = report(results, lambda commit: False, {"ttft_length"})
    assert "4,000.0 (4,000.0–4,000.0)" in text  # noqa: RUF001 - the report's own range
    assert "*What it does not show.*" in text
    assert 'media="(prefers-color-scheme: dark)" srcset="plots/ttft_length-dark.svg"' in text
    assert 'src="plots/ttft_length.svg"' in text


def test_a_method_that_held_the_bound_at_no_rate_gives_a_lower_bound_of_the_ratio():
    def rate(method: str, held: float, broke: float) -> dict[str, object]:
        labels = {"experiment": "highest rate", "set": "fits", "method": method}
        return {**labels, "bound_seconds": 6, "held": held, "broke": broke}

    rows = [rate("legolink-16", 4.0, 8.0), rate("full", 0.0, 0.1)]
    table = asked_table({**NOTHING, "serving": {"about": ABOUT, "rows": rows}})
    assert "at least 7 | more than 40.00 | yes |" in table
    rows = [rate("legolink-16", 4.0, 8.0), rate("full", 0.5, 0.8)]
    table = asked_table({**NOTHING, "serving": {"about": ABOUT, "rows": rows}})
    assert "at least 7 | 8.00 | yes |" in table


def score(method: str, metric: str, mean: float, **over: float) -> dict[str, object]:
    """A row of a set of 40 cases; with low and high, the paired difference from the reference."""
    row = {"method": method, "set": "facts", "metric": metric, "share_recomputed": 0.1}
    row |= {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "num_cases": 40}
    return row | ({"over_legolink-16": {"mean": 0.0, **over}} if over else {})


def test_methods_are_told_apart_only_by_paired_intervals_without_0():
    rows = [
        score("full", "f1", 0.9, low=0.1, high=0.3),
        score("no-documents", "f1", 0.2, low=-0.5, high=-0.3),
        score("naive", "f1", 0.7, low=-0.1, high=0.0),
        score("legolink-16", "f1", 0.7),
        score("legolink-16", "exact_match", 0.6),
    ]
    text = report({**NOTHING, "quality": {"about": ABOUT, "rows": rows}}, lambda c: False, set())
    assert "better: full; worse: no-documents; not told apart: naive." in text
    assert (
        "| legolink-16 | 10.0% | 40 | 0.600 (0.500 to 0.700) | 0.700 (0.600 to 0.800) |  |" in text
    )


def test_a_set_whose_documents_do_not_help_claims_nothing_of_methods():
    rows = [
        score("full", "f1", 0.3, low=0.1, high=0.3),
        score("no-documents", "f1", 0.2, low=-0.5, high=-0.3),
        score("legolink-16", "f1", 0.1),
    ]
    text = report({**NOTHING, "quality": {"about": ABOUT, "rows": rows}}, lambda c: False, set())
    assert "so no method is judged by them" in text
    assert "better:" not in text


def test_errors_and_attention_have_a_column_a_method():
    def row(method: str, metric: str, mean: float, **more: object) -> dict[str, object]:
        return {**score(method, metric, mean), "set": "essays", "by_layer": [mean], **more}

    errors = [
        row("naive", "relative error, keys", 0.9, from_token=0),
        row("naive", "relative error, keys", 0.5, from_token=1),
        row("legolink-16", "relative error, keys", 0.2, from_token=1),
    ]
    mass = [row("full", "attention mass, first", 0.4), row("naive", "attention mass, 16", 0.3)]
    results = {
        **NOTHING,
        "kv_error": {"about": ABOUT, "rows": errors},
        "attention_mass": {"about": ABOUT, "rows": mass},
    }
    text = report(results, lambda commit: False, set())
    assert "| from token | naive | legolink-16 |" in text
    assert "| 0 | 0.900 (0.800 to 1.000) |  |" in text
    assert "| the prompt's very first token | 0.400 (0.300 to 0.500) |  |" in text
    assert "| their first 16 |  | 0.300 (0.200 to 0.400) |" in text


def test_what_the_server_did_is_shown_by_rate_with_where_the_time_went():
    probe = {"experiment": "rate", "set": "fits", "method": "full", "rate": 0.5, "requests": 9}
    times = {f"time_to_first_token_p{p}": p / 100 for p in (50, 90, 99)}
    parts = {f"{part}_seconds_p50": 0.002 for part in ("lookup", "queue", "load", "compile")}
    row = {**probe, **times, **parts, "link_seconds_p50": 1.5, "refused": 1}
    rows = [{**row, "cached_share_by_quarter": [0.5, 0.25]}, {**probe, "rate": 9, "refused": 9}]
    rows[1] |= {"cached_share_by_quarter": []}
    text = report({**NOTHING, "serving": {"about": ABOUT, "rows": rows}}, lambda c: False, set())
    assert "| fits | full | 0.5 | 9 (1) | 0.50 · 0.90 · 0.99 |  | 50% 25% |" in text
    assert "| fits | full | 0.5 | 2.0 | 2.0 | 2.0 | 2.0 | 1,500.0 |" in text
    assert "| fits | full | 9 | 9 (9) |  |  |  |" in text


def test_readme_shows_the_numbers_of_the_result_files_and_no_others():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    results = {name: read_results(name) for name in SECTIONS}
    assert readme.with_numbers(text, results) == text, "python -m benchmarks.report writes them"
    assert text.count("<!-- measured: ") == 6
    assert readme.NOT_MEASURED not in text


def test_readme_tells_its_numbers_in_short_lines_and_sentences():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- measured: \w+ -->(.*?)<!-- end -->", text, re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines() if line[:1] != "|"]
    assert max(len(line) for line in lines) <= 100
    sentences = re.split(r"[.:]\*?\s", "\n".join(lines))
    assert max(len(sentence.split()) for sentence in sentences) <= 25


def test_a_block_of_readme_without_results_says_so_and_the_rest_stays():
    text = "before\n<!-- measured: peers -->\n\n| 1 ms |\n\n<!-- end -->\nafter 2 ms"
    found = readme.with_numbers(text, NOTHING)
    assert found == text.replace("| 1 ms |", "Not measured.")


def test_many_askers_stand_in_a_table_of_their_own_each_engine_with_its_range():
    rows = [
        {"experiment": "32 askers, one order", "method": name, "median": t, "low": t - 1, "high": t}
        for name, t in (("legokv", 12.0), ("vllm", 17.7))
    ]
    results = {**NOTHING, "askers": {"about": ABOUT, "rows": rows}}
    text = readme.with_numbers("<!-- measured: askers -->\n\nx\n\n<!-- end -->", results)
    assert "|  | legokv | vLLM's CPU build |" in text
    assert "| 32 askers, one order | 12.0 s (11.0 to 12.0) | 17.7 s (16.7 to 17.7) |" in text
    assert "shuffled" not in text


def test_a_rate_without_an_answer_is_said_so_and_one_that_was_not_tried_is_not():
    probe = {"experiment": "rate", "set": "fits", "method": "legolink-16", "rate": 0.4}
    times = {"median": 0.01, "low": 0.01, "high": 0.02}
    rows = [{**probe, "requests": 2, "refused": 2, "cached_share_by_quarter": []}]
    rows += [{"experiment": "highest rate", "set": "fits", "method": "legolink-16", "held": 0.0}]
    rows += [{"experiment": "overhead", "method": name, **times} for name in OVERHEADS]
    results = {**NOTHING, "serving": {"about": ABOUT, "rows": rows}}
    text = readme.with_numbers("<!-- measured: serving -->\n\nx\n\n<!-- end -->", results)
    assert "| with linking | 0.4 | no answer | no |" in text
    assert "| computing everything |" not in text
    assert "a processor, 2 threads" in text


def test_few_cases_are_shown_and_not_judged():
    few = {**score("naive", "f1", 0.1, low=-0.5, high=-0.3), "num_cases": 29}
    rows = [score("last-16", "f1", 0.1, low=-0.5, high=-0.3), few, score("legolink-16", "f1", 0.7)]
    text = report({**NOTHING, "quality": {"about": ABOUT, "rows": rows}}, lambda c: False, set())
    assert "worse: last-16;" in text
    assert "not judged, with fewer than 30 cases: naive." in text


def test_documents_that_make_answers_worse_judge_no_method():
    rows = [score("full", "f1", 0.1), score("no-documents", "f1", 0.9)]
    rows += [score("legolink-16", "f1", 0.1)]
    text = report({**NOTHING, "quality": {"about": ABOUT, "rows": rows}}, lambda c: False, set())
    assert "does not stand clear of no documents" in text


def test_results_of_several_commits_are_marked_if_one_is_of_other_code():
    about = {**ABOUT, "commits": ["abc1234", "def5678"]}
    line = provenance("cost", {"about": about, "rows": []}, {"abc1234": False, "def5678": True}.get)
    assert "From another commit" in line
    line = provenance("cost", {"about": about, "rows": []}, {"abc1234": False}.get)
    assert "does not have" in line


def test_a_lower_bound_of_a_ratio_refutes_nothing():
    labels = {"experiment": "highest rate", "set": "fits", "bound_seconds": 6}
    rows = [{**labels, "method": "legolink-16", "held": 0.4, "broke": None}]
    rows += [{**labels, "method": "full", "held": 0.0, "broke": 0.4}]
    table = asked_table({**NOTHING, "serving": {"about": ABOUT, "rows": rows}})
    assert "at least 7 | more than 1.00 | not decided |" in table


def test_one_or_two_times_have_no_interval():
    row = {"experiment": "full prefill", "method": "vllm", "version": "vllm 1"}
    row |= {"median": 1.0, "low": 1.0, "high": 1.0, "over_legokv": 2.0}
    row |= {"over_legokv_low": 1.9, "over_legokv_high": 2.1}
    for count, shown in ((2, "| 2.00 |"), (3, "| 2.00 (1.90 to 2.10) |")):
        peers = {"about": ABOUT, "rows": [{**row, "count": count}]}
        text = report({**NOTHING, "peers": peers}, lambda commit: False, set())
        assert shown in text
