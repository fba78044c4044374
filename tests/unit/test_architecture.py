"""Rules of the design that a reader of the code relies on, checked by reading the code."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "eupmim_dist"
# A package imports only from lines above its own; packages on one line never import each other.
LAYERS = [
    ["errors"],
    ["files", "hashing"],
    ["metadata"],
    ["config"],
    ["telemetry"],
    ["data"],
    ["arguments"],
    ["tasks", "models"],
    ["objectives"],
    ["parallel"],
    ["optim"],
    ["train"],
    ["checkpoint", "evaluation"],
    ["export"],
    ["assemble"],
    ["training"],
    ["api", "stores", "convert"],
    ["auditing", "comparison", "recommending", "reporting", "tuning"],
    ["bench", "doctor"],
    ["cli"],
    ["__main__"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
MODULES = sorted(PACKAGE.rglob("*.py"))
LIMITS = {"train/step.py": 100, "train/loop.py": 120}


def layer_of(path: Path) -> str | None:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return None if parts == ("__init__",) else parts[0]


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
    return {name.split(".")[1] for name in names if name.startswith("eupmim_dist.")} & LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_layer_imports_only_from_those_above(path: Path) -> None:
    layer = layer_of(path)
    if layer is None:
        return
    assert layer in LEVEL, f"{path}: {layer} is no layer of the design"
    wrong = {name for name in imported(path) if name != layer and LEVEL[name] >= LEVEL[layer]}
    assert not wrong, f"{layer} must not import {wrong}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_short_and_have_a_purpose(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= LIMITS.get(str(path.relative_to(PACKAGE)), 330)
    assert "utils" not in path.stem
    if lines:
        assert ast.get_docstring(ast.parse("\n".join(lines))), "a module says what it is for"


def test_the_configuration_needs_no_torch() -> None:
    for path in (PACKAGE / "config").glob("*.py"):
        assert "torch" not in path.read_text(encoding="utf-8")
