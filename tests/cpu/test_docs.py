"""The documentation can be read and followed: short lines, links that lead on, true tables."""

import re
from collections import Counter
from dataclasses import MISSING
from pathlib import Path

import pytest
from paths import ROOT

from legokv.built.settings import described
from legokv.serving.settings import SETTINGS

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
# The lines of benchmarks.md are made by benchmarks/report, of numbers and commands of any length.
WRITTEN = [page for page in PAGES if page.name != "benchmarks.md"]
LONGEST_LINE = 110

FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]*`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
ENTRY = re.compile(r"(\d{4}-\d{2}-\d{2}): \S.* \([^()]+\)")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def links_of(page: Path) -> list[str]:
    return LINK.findall(INLINE_CODE.sub("", FENCED.sub("", text_of(page))))


def headings_of(page: Path) -> list[str]:
    return HEADING.findall(FENCED.sub("", text_of(page)))


def anchors_of(page: Path) -> set[str]:
    """What GitHub calls the headings; the second of a name is numbered."""
    anchors, seen = set(), Counter[str]()
    for heading in headings_of(page):
        name = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        anchors.add(f"{name}-{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return anchors


def is_broken(link: str, page: Path) -> bool:
    """Whether a link of a page leads out of the repository or to no file or heading in it."""
    if re.match(r"https?://", link):
        return False
    place, _, anchor = link.partition("#")
    target = (page.parent / place).resolve() if place else page
    if not target.is_relative_to(ROOT) or not target.exists():
        return True
    return bool(anchor) and anchor not in anchors_of(target)


def entries_of_the_log() -> list[str]:
    """The log's headings below the title but for the list of subjects."""
    return [h for h in headings_of(DOCS / "log.md") if h not in ("Log", "Subjects")]


def rows_below(page: Path, heading: str) -> dict[str, list[str]]:
    """The other cells of each row whose first cell is code, from the tables below a heading."""
    _, _, below = text_of(page).partition(f"### {heading}\n")
    rows = re.findall(r"^\| `([^`]+)` \|(.*)\|$", below.partition("\n### ")[0], re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split(" | ")] for name, cells in rows}


def plain(text: str) -> str:
    """Text without the marks of code and links."""
    return re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", text).replace("`", "")


@pytest.mark.parametrize("page", WRITTEN, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_a_page_is_too_long_to_read(page: Path) -> None:
    lines = enumerate(text_of(page).splitlines(), 1)
    assert [number for number, line in lines if len(line) > LONGEST_LINE] == []


def test_no_line_of_the_readme_but_a_table_s_is_longer_than_100() -> None:
    lines = enumerate(text_of(ROOT / "README.md").splitlines(), 1)
    assert [n for n, line in lines if len(line) > 100 and not line.startswith("|")] == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *PAGES], ids=lambda page: str(page.relative_to(ROOT))
)
def test_every_link_leads_to_a_file_or_heading_that_exists(page: Path) -> None:
    assert [link for link in links_of(page) if is_broken(link, page)] == []


def test_every_page_is_in_the_index() -> None:
    listed = {link.partition("#")[0] for link in links_of(DOCS / "README.md")}
    assert {page.name for page in PAGES} - listed == {"README.md"}


def test_every_entry_of_the_log_has_a_date_and_a_verdict() -> None:
    assert [entry for entry in entries_of_the_log() if not ENTRY.fullmatch(entry)] == []


def test_newer_entries_of_the_log_stand_above_older_ones() -> None:
    dates = [entry[:10] for entry in entries_of_the_log()]
    assert dates
    assert dates == sorted(dates, reverse=True)


def test_every_entry_of_the_log_is_found_by_its_subject_once() -> None:
    listed = [link.removeprefix("#") for link in links_of(DOCS / "log.md") if link[0] == "#"]
    assert sorted(listed) == sorted(anchors_of(DOCS / "log.md") - {"log", "subjects"})


def test_the_page_on_serving_has_every_setting_with_its_default_and_meaning() -> None:
    shown = rows_below(DOCS / "serving.md", "Settings")
    assert shown.keys() == {item.name for item in SETTINGS}
    for item in SETTINGS:
        default, meaning = shown[item.name]
        assert plain(meaning) == described(item)
        if item.default is not MISSING:
            assert default.partition(" ")[0] == f"`{item.default}`", item.name


@pytest.mark.parametrize(("kind", "heading"), [("input", "Inputs"), ("output", "Outputs")])
def test_the_page_on_serving_has_every_tensor_of_generate_with_its_type(
    kind: str, heading: str
) -> None:
    words = {"TYPE_STRING": "string", "TYPE_INT32": "int32", "TYPE_UINT64": "uint64"}
    words |= {"TYPE_FP32": "float32", "TYPE_FP64": "float64", "TYPE_BOOL": "bool"}
    config = (ROOT / "model_repo/generate/config.pbtxt").read_text(encoding="utf-8")
    _, _, tensors = config.partition(f"\n{kind} [")
    found = re.findall(r'name: "(\w+)" data_type: (\w+)', tensors.partition("\n]")[0])
    shown = rows_below(DOCS / "serving.md", f"{heading} of `generate`")
    assert {name: cells[0].rstrip("s") for name, cells in shown.items()} == {
        name: words[data_type] for name, data_type in found
    }


def test_the_page_on_gpus_has_every_stage_with_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "gpu")
    from measure import SHARES
    from stage_list import LIMITS, PLANNED

    page = text_of(DOCS / "gpu.md")
    shown = re.findall(r"^\| ([a-z ]+) \| (\d+) s \| (\d+) s \|", page, re.MULTILINE)
    assert shown == [(name, str(PLANNED[name]), str(LIMITS[name])) for name in LIMITS]
    shares = re.findall(r"^\| ([a-z]+) \| (\d+) s \| (?!\d+ s \|)", page, re.MULTILINE)
    assert shares == [(name, str(seconds)) for name, seconds in SHARES.items()]


def test_the_page_on_compiling_has_every_option_of_the_build(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "build")
    import engine_command

    with pytest.raises(SystemExit):
        engine_command.parse_arguments(None, ["--help"])
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", capsys.readouterr().out)) - {"--help"}
    _, _, commands = text_of(DOCS / "compiling.md").partition("### Commands\n")
    table = "".join(re.findall(r"^\|.*\|$", commands.partition("\n### ")[0], re.MULTILINE))
    assert set(re.findall(r"--[a-z][a-z-]*", table)) == options
