"""The tree's laws: a folder is a room, imports go down, and few things lie loose."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "src" / "legokv"
TREE = ROOT / "docs" / "structure.md"
# 140 modules were the house of 2026-11-29; fronts and what else comes bring some of their own.
MAX_MODULES, MAX_LOOSE, MAX_FLOORS = 246, 7, 13
# These choose between a folder's sub-folders, so they alone of its files look into them.
CHOOSERS = {"runners": {"opening"}, "stores": {"opening", "tiers"}, "serving": {"doors"}}
SUB_ROOMS = {
    "runners/plan",
    "stores/local",
    "stores/fleet",
    "serving/triton",
    "serving/front",
    "serving/gateway",
}


@cache
def floors() -> dict[str, int]:
    """Each room's floor, as the tree in docs/structure.md has it."""
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \|", TREE.read_text(), re.MULTILINE)
    return {room: int(floor) for floor, rooms in rows for room in re.findall(r"`([\w/]+)`", rooms)}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(parts: tuple[str, ...]) -> str:
    """The room of the module `parts` below legokv, () for legokv itself."""
    folder = "/".join(parts[:2])
    return folder if folder in SUB_ROOMS else parts[0] if parts else "legokv"


def imports(source: str) -> Iterator[tuple[int, tuple[str, ...]]]:
    """(line, parts below legokv) of each import of this package, wherever it stands."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        source_module = getattr(node, "module", None)
        for alias in node.names:
            name = (
                alias.name if source_module is None else imported_module(source_module, alias.name)
            )
            parts = tuple(name.split("."))
            if parts[0] == "legokv":
                yield node.lineno, parts[1:]


def imported_module(module: str, name: str) -> str:
    """What `from module import name` loads last: `name` itself where it is a module."""
    place = PACKAGE.parent.joinpath(*module.split("."), name)
    return f"{module}.{name}" if place.is_dir() or place.with_suffix(".py").exists() else module


def breach(importer: tuple[str, ...], imported: tuple[str, ...]) -> str | None:
    """Why the module `importer` may not import `imported`; None if it may."""
    here, there = room_of(importer), room_of(imported)
    if not imported and here != "cli":
        return "only the command imports the package's face"
    if here == there or not imported:
        return None
    parent, chosen = here.split("/")[0], there.split("/")[0]
    if parent == chosen and "/" in here:
        if "/" in there or imported[1] in CHOOSERS[parent]:
            return "a sub-folder imports neither its neighbour nor its chooser"
        return None
    if parent == chosen:
        may = importer[1] in CHOOSERS[parent]
        return None if may else f"only {sorted(CHOOSERS[parent])} look into {there}"
    if floors()[there] < floors()[here]:
        return None
    return f"{here} is on floor {floors()[here]}, {there} on floor {floors()[there]}"


def breaches(path: str, source: str) -> list[str]:
    """Lines of a module, "path:line: why", that break a law; `path` is below src/legokv."""
    importer = tuple(path.removesuffix(".py").split("/"))
    checked = ((line, breach(importer, imported)) for line, imported in imports(source))
    return [f"src/legokv/{path}:{line}: {why}" for line, why in checked if why]


def test_imports_go_down_the_floors() -> None:
    found = [
        line
        for file in modules()
        if file != PACKAGE / "__init__.py"
        for line in breaches(file.relative_to(PACKAGE).as_posix(), file.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    ("path", "source", "why"),
    [
        ("chunks/pool.py", "x = 1\nfrom legokv.engine.jobs import Job", "chunks is on floor"),
        ("documents/cut.py", "import legokv.documents.cut, legokv.stores.opening", "documents is"),
        ("runners/eager.py", "from legokv.runners.plan.runner import R", "only ['opening'] look"),
        ("stores/fleet/tier.py", "from legokv.stores.local.tier import T", "neither its neighbour"),
        ("stores/local/tier.py", "from legokv.stores.opening import o", "nor its chooser"),
        ("link/link.py", "def f():\n    from legokv.step.batch import B", "link is on floor"),
        ("build/engine.py", "import legokv", "only the command imports"),
    ],
)
def test_an_import_that_goes_up_is_named(path: str, source: str, why: str) -> None:
    line = source.count("\n") + 1
    (found,) = breaches(path, source)
    assert found.startswith(f"src/legokv/{path}:{line}: ")
    assert why in found


def test_every_room_has_its_floor_and_every_floor_its_rooms() -> None:
    rooms = {room_of(f.relative_to(PACKAGE).with_suffix("").parts) for f in modules()}
    assert rooms - {"__init__"} == set(floors())


def test_few_modules_lie_loose_and_the_house_is_not_too_high() -> None:
    loose = [file for file in modules() if file.parent == PACKAGE]
    named = [file for file in modules() if file.name != "__init__.py"]
    assert len(loose) <= MAX_LOOSE
    assert len(named) <= MAX_MODULES
    assert longest_chain() <= MAX_FLOORS


def longest_chain() -> int:
    """How many rooms stand above each other by imports, the command on top not counted."""
    below: dict[str, set[str]] = {}
    for file in modules():
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "cli"):
            reached = {node_of(p) for _, p in imports(file.read_text()) if p}
            below.setdefault(node_of(parts), set()).update(reached - {node_of(parts)})

    @cache
    def height(node: str) -> int:
        return 1 + max((height(other) for other in below.get(node, ())), default=0)

    return max(map(height, below))


def node_of(parts: tuple[str, ...]) -> str:
    """The room, a folder's choosers apart from its other files."""
    room = room_of(parts)
    chooses = len(parts) > 1 and room == parts[0] and parts[1] in CHOOSERS.get(room, ())
    return f"{room}, choosers" if chooses else room


# A thing is called by a noun: these say only that something was done to it.
PARTICIPLES = {"found", "given", "taken", "said", "known", "wanted", "spoken", "shown", "told"}


def participles(source: str) -> list[str]:
    """Variables and arguments that are called by a participle, "line: name"."""
    named = []
    for node in ast.walk(ast.parse(source)):
        stored = isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        name = node.id if stored else node.arg if isinstance(node, ast.arg) else ""
        if name in PARTICIPLES:
            named.append(f"{node.lineno}: {name}")
    return named


def test_things_are_called_by_nouns() -> None:
    named = {
        f"{file.relative_to(PACKAGE)}:{line}"
        for file in modules()
        for line in participles(file.read_text())
    }
    assert named == set()
    assert participles("def f(given):\n    found = given\n") == ["1: given", "2: found"]


def test_no_test_imports_from_a_conftest() -> None:
    """Each folder's has this one name: who imports it gets the one that was read last."""
    importing = re.compile(r"^\s*(?:from|import) conftest\b", re.MULTILINE)
    assert importing.search("from conftest import TEXTS")
    files = (ROOT / "tests").rglob("*.py")
    assert [file.name for file in files if importing.search(file.read_text("utf-8"))] == []


# Whose JSON somebody else reads.
SPOKEN_BY = ("cli.py", "serving", "commands", "chunks", "built", "plan")


def loose_json(source: str) -> list[int]:
    """Lines that write JSON and would write NaN, which is none."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if ast.unparse(call.func) in ("json.dumps", "json.dump")
        and not any(k.arg == "allow_nan" and ast.unparse(k.value) == "False" for k in call.keywords)
    ]


def test_json_that_leaves_is_json() -> None:
    rooms = [file for file in modules() if file.relative_to(PACKAGE).parts[0] in SPOKEN_BY]
    # The front writes sentences and counts alone.
    rooms = [file for file in rooms if file.parent.name != "front"]
    clients = sorted((ROOT / "client").glob("*.py"))
    assert len(rooms) > 40
    loose = {
        f"{file.relative_to(ROOT)}:{line}"
        for file in (*rooms, *clients)
        for line in loose_json(file.read_text())
    }
    assert loose == set()
    assert loose_json("json.dumps(1)\njson.dump(1, f, allow_nan=False)\njson.dumps(2)") == [1, 3]
