"""python -m benchmarks.report: docs/benchmarks.md, its plots and README's numbers from results."""

import argparse
import sys
from pathlib import Path

from benchmarks.plots import draw
from benchmarks.plots.schemes import DARK, LIGHT
from benchmarks.record.about import RESULTS, ROOT, measured_since
from benchmarks.record.results import read_results
from benchmarks.report.asked import Results, asked_table
from benchmarks.report.provenance import Changed, provenance
from benchmarks.report.readme import with_numbers
from benchmarks.report.sections import BODIES
from benchmarks.report.words import INTRODUCTION, METHODS, PLOTS, SECTIONS


def report(results: Results, changed: Changed, drawn: set[str]) -> str:
    """The whole text. A missing result is a line with its command, a stale one is marked."""
    parts = [INTRODUCTION, "## Asked and measured", asked_table(results), METHODS]
    for name, section in SECTIONS.items():
        found = results[name]
        parts += [f"## {section.question}", section.how, provenance(name, found, changed)]
        if found is not None:
            plots = PLOTS.get(name, {})
            parts += [_picture(plot, shown) for plot, shown in plots.items() if plot in drawn]
            parts += [BODIES[name](found["rows"]), f"*What it does not show.* {section.not_shown}"]
    return "\n\n".join(parts) + "\n"


def _picture(plot: str, shown: str) -> str:
    """The plot in the colours of the reader's page."""
    return (
        "<picture>\n"
        f'<source media="(prefers-color-scheme: dark)" srcset="plots/{plot}{DARK.suffix}.svg">\n'
        f'<img alt="{shown}" src="plots/{plot}{LIGHT.suffix}.svg">\n'
        "</picture>"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the report goes")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="whose blocks")
    arguments = parser.parse_args()
    results: Results = {name: read_results(name, arguments.results) for name in SECTIONS}
    drawn = draw.all_plots(results, arguments.docs / "plots")
    path = arguments.docs / "benchmarks.md"
    path.write_text(report(results, measured_since, drawn), encoding="utf-8")
    text = arguments.readme.read_text(encoding="utf-8")
    arguments.readme.write_text(with_numbers(text, results), encoding="utf-8")
    print(f"{path}: {sum(r is not None for r in results.values())} of {len(results)} measured")
    return 0


if __name__ == "__main__":
    sys.exit(main())
