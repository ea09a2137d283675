"""The layers: imports go downward only, layers 1 to 3 never import Ray, modules stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "rayobjects"
LINES_MAX = 500

LAYERS = {
    "rayobjects.storage": 2,
    "rayobjects.objects": 3,
    "rayobjects.testing": 3,
    "rayobjects.runtime": 4,
    "rayobjects.serve": 5,
    "rayobjects.cli": 5,
    "rayobjects.__main__": 5,
}
"""What is not named here, a module at the top, is layer 1."""

MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> int:
    for prefix, layer in LAYERS.items():
        if module == prefix or module.startswith(prefix + "."):
            return layer
    return 1


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in the file, also inside functions. What is imported
    for the type checker only does not count."""
    ignored: set[ast.AST] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            ignored.update(inner for each in node.body for inner in ast.walk(each))
        if node in ignored:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module(path: Path) -> None:
    own = layer_of(name_of(path))
    for imported in imports(path):
        root = imported.split(".")[0]
        if root == "rayobjects" and imported != "rayobjects":
            assert layer_of(imported) <= own, f"layer {own} imports {imported}"
        if root == "ray":
            assert own >= 4, f"layer {own} imports {imported}"
    assert len(path.read_text().splitlines()) <= LINES_MAX


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "begin with a docstring"
