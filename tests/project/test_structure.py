"""Imports go one way: core ← orgs ← events ← webhooks ← portal, console ← triggers_project."""

from __future__ import annotations

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import call_command

from orgs.scopes import Scope

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


def _upward(layer: str) -> set[str]:
    """Return the packages that a layer must not know."""
    return set(LAYERS[LAYERS.index(layer) + 1 :]) | ({"portal"} if layer == "console" else set())


def _texts(path: Path) -> Iterator[str]:
    """Yield the strings of a module that aren't docstrings, or a template."""
    text = path.read_text()
    if path.suffix == ".py":
        yield from _strings(text)
    else:
        yield text


def _strings(code: str) -> Iterator[str]:
    """Yield the strings of Python code that aren't docstrings."""
    nodes = list(ast.walk(ast.parse(code)))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


def _named(text: str, packages: set[str]) -> set[str]:
    """Return what a text names of these packages: dotted paths and models, templates and static files, URLs, tables.

    `app_model` is a table, and a part of the names of the admin's URLs.
    """
    names = "|".join(sorted(packages))
    tables = {model._meta.db_table for model in apps.get_models() if model._meta.app_label in packages}
    found = re.findall(rf"\b(?:{names})(?:\.[A-Za-z_]\w*|/[\w/.]+|:[a-z_]\w*)", text)
    found += [word for word in re.findall(r"\w+", text) if any(f"{word}_".startswith(f"{table}_") for table in tables)]
    return set(found) - set(Scope.values)


def test_nothing_imports_upward() -> None:
    wrong = []
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in _imported_packages(path) & _upward(layer)]
    assert not wrong


def test_no_string_and_no_template_points_upward() -> None:
    wrong = []
    for layer in LAYERS[:-1]:
        for path in sorted((ROOT / layer).rglob("*")):
            if path.suffix in {".py", ".html", ".txt", ".js", ".css"}:
                named = {name for text in _texts(path) for name in _named(text, _upward(layer))}
                wrong += [f"{path.relative_to(ROOT)} names {name}" for name in named]
    assert not wrong


def test_what_points_upward_is_seen() -> None:
    examples = ["webhooks.queues.mark_due", "webhooks.Delivery", "webhooks/api/x.html", "FROM webhooks_delivery d",
                "admin:webhooks_delivery_change", "webhooks:list"]  # fmt: skip
    assert [text for text in examples if not _named(text, _upward("events"))] == []
    assert not _named("webhooks are sent. The scope events:read, events_per_minute", _upward("orgs"))


_STATEMENT = re.compile(r"\s*\(?(SELECT|INSERT INTO|UPDATE|DELETE FROM|WITH|SET LOCAL)\s")
_REASON = re.compile(r"\bSQL\b[^.]*\bbecause\b|\bORM\b")


def _prose(code: str) -> str:
    """Return the docstrings and comments of Python code, without line breaks."""
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    parts = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(code)) if isinstance(node, documented)]
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        if token.type == tokenize.COMMENT:
            parts.append(token.string.lstrip("# "))
    return " ".join(" ".join(parts).split())


def _lacks_a_reason(code: str) -> bool:
    """Return whether code has an SQL statement, and doesn't say why it isn't the ORM's."""
    return any(map(_STATEMENT.match, _strings(code))) and not _REASON.search(_prose(code))


def test_a_module_with_sql_says_why_it_is_not_the_orms() -> None:
    """`core.db` has the reasons that there are."""
    modules = [path for layer in LAYERS for path in (ROOT / layer).rglob("*.py") if "migrations" not in path.parts]
    assert not [str(path.relative_to(ROOT)) for path in sorted(modules) if _lacks_a_reason(path.read_text())]


def test_sql_without_a_reason_is_seen() -> None:
    assert _lacks_a_reason('_FIND = f"SELECT id FROM {table}"  # the newest')
    assert not _lacks_a_reason('# SQL, because of the\n# LATERAL join.\n_FIND = "SELECT id FROM t"')
    assert not _lacks_a_reason('"""Select one."""\nNAME = "Select one"')


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


def test_a_long_function_tells_its_steps() -> None:
    """More than forty lines, also of a nested one, need a docstring: a test's name is its own."""
    files = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    wrong = [
        f"{path}: {node.name}"
        for path in files.split()
        for node in ast.walk(ast.parse((ROOT / path).read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("test_")
        if (node.end_lineno or 0) - node.lineno >= 40 and len(ast.get_docstring(node) or "") < 60
    ]
    assert not wrong


def test_the_development_stack_imports_neither_the_benchmark_nor_the_soak() -> None:
    assert not [path for path in (ROOT / "devstack").rglob("*.py") if _imported_packages(path) & {"bench", "soak"}]


@pytest.mark.django_db
def test_no_migration_is_missing() -> None:
    call_command("makemigrations", check_changes=True, dry_run=True, verbosity=0)
