"""Imports go one way: core ← orgs ← events ← webhooks ← portal, console ← triggers_project."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Of `portal` and `console`, which are beside each other, neither imports the other.
LAYERS = ["core", "orgs", "events", "webhooks", "portal", "console", "triggers_project"]


def _imported_packages(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_nothing_imports_upward() -> None:
    wrong = []
    for level, layer in enumerate(LAYERS):
        for path in sorted((ROOT / layer).rglob("*.py")):
            upward = _imported_packages(path) & set(LAYERS[level + 1 :])
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in sorted(upward)]
    wrong += [
        f"{path.relative_to(ROOT)} imports the portal"
        for path in sorted((ROOT / "console").rglob("*.py"))
        if "portal" in _imported_packages(path)
    ]
    assert not wrong


def test_the_product_does_not_import_what_only_runs_and_tests_need() -> None:
    wrong = []
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            wrong += [str(path)] if _imported_packages(path) & {"devstack", "tests", "bench", "soak", "pytest"} else []
    assert not wrong


def test_the_tests_import_neither_the_benchmark_nor_the_soak() -> None:
    """They run both as their users do: an import would hide what only works in a process that is set up already."""
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for name in sorted(_imported_packages(path) & {"bench", "soak"})
    ]
    assert not wrong


def test_the_development_stack_imports_neither_the_benchmark_nor_the_soak() -> None:
    assert not [path for path in (ROOT / "devstack").rglob("*.py") if _imported_packages(path) & {"bench", "soak"}]
