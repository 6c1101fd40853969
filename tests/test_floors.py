"""The arrows between the package's modules go one way (CONTRIBUTING.md, "Floors")."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "axnet"
# each may import from those before it; names of one line stand on one floor and may not import each other
FLOORS = (
    ("axnet.imaging", "axnet.checkpoint", "axnet.progress"),
    ("axnet.models",),
    ("axnet.data", "axnet.metrics"),
    ("axnet.segment", "axnet.report"),
    ("axnet.train", "axnet.predictor", "axnet.export"),
    ("axnet.serve",),
    ("axnet.cli",),
)


def imports() -> dict[str, set[str]]:
    """Modules of axnet to the modules of axnet that they import, wherever in the file they do."""
    files = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    found = {}
    for name, path in files.items():
        found[name] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names} & files.keys()
            elif isinstance(node, ast.ImportFrom) and node.module in files:
                below = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (below & files.keys()) or {node.module}
    return found


def package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_each_floor_imports_only_from_below() -> None:
    height = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    upward = [
        (module, other)
        for module, others in imports().items()
        for other in others
        if package(module) in height
        and package(other) in height
        and package(module) != package(other)
        and height[package(other)] >= height[package(module)]
    ]
    assert not upward


@pytest.mark.parametrize("floor", ["models", "data", "metrics", "segment", "report", "train", "cli"])
def test_no_two_modules_import_each_other(floor: str) -> None:
    within = {name: others for name, others in imports().items() if package(name) == f"axnet.{floor}"}
    reached: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import circle: {' -> '.join([*path, module])}"
        if module in reached:
            return
        for other in sorted(within.get(module, ())):
            if other in within and other != f"axnet.{floor}":
                visit(other, (*path, module))
        reached.add(module)

    for name in within:
        visit(name, ())
