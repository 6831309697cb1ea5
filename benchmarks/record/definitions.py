"""What code says, wherever it stands: its definitions without imports, paths and words for readers.

Sources with the same definitions measure the same. Files may be renamed, split and folded into one
another; a definition that is changed, new or gone makes other code, since an import, which is not
looked at, may have led to it. Not seen: a name imported from another module of ours that defines
it otherwise, and in a string a module of ours in place of another.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import PurePosixPath

_OURS = ("src/legokv/", "benchmarks/")
_HERE = re.compile(r"pathlib\.Path\(__file__\)(\.resolve\(\)|\.parents\[\d+\]|\.parent\b)*")


def definitions(sources: Mapping[str, str]) -> frozenset[str]:
    """Each top-level statement of the Python files of `sources` (by path), each other text."""
    modules = frozenset(_modules(sources))
    found: set[str] = set()
    for path, text in sources.items():
        if path.endswith(".py"):
            tree = ast.parse(text, path)
            body = _Plain(modules, _imported(tree)).visit(tree).body
            found.update(_HERE.sub("__file__", ast.unparse(statement)) for statement in body)
        else:
            lines = (line.strip() for line in text.splitlines())
            kept = (line for line in lines if line and not line.startswith(("//", "#include")))
            found.add("\n".join(kept))
    return frozenset(found)


def _modules(paths: Iterable[str]) -> Iterator[str]:
    """The names of the modules at `paths` and of the packages around them."""
    for path in paths:
        if path.startswith(_OURS) and path.endswith(".py"):
            parts = PurePosixPath(path.removeprefix("src/")).with_suffix("").parts
            yield from (".".join(parts[:end]) for end in range(1, len(parts) + 1))


def _imported(tree: ast.Module) -> dict[str, str]:
    """What the file's imported names are in full."""
    full: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            full |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            full |= {a.asname: a.name for a in node.names if a.asname}
    return full


class _Plain(ast.NodeTransformer):
    """Takes out imports, `__all__` and docstrings; writes a name of ours without its module."""

    def __init__(self, modules: frozenset[str], imported: Mapping[str, str]) -> None:
        self._modules, self._imported = modules, imported

    def visit_Import(self, node: ast.Import) -> None: ...

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None: ...

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        prose = isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        return None if prose else self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        return None if ast.unparse(node.targets[0]) == "__all__" else self.generic_visit(node)

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        return node if node.body or node.orelse else None

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._named(self._imported.get(node.id, node.id))

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        of_module = isinstance(node.value, ast.Name) and node.value.id in self._modules
        return self._named(f"{node.value.id}.{node.attr}") if of_module else node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        dotted = isinstance(node.value, str) and "." in node.value
        return ast.Constant("a module") if dotted and node.value in self._modules else node

    def _named(self, full: str) -> ast.Name:
        ours = full.partition(".")[0] in self._modules and full not in self._modules
        return ast.Name(full.rpartition(".")[2] if ours else full)
