"""The tables of the documentation match the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from django.core.management import get_commands

from scripts import settings_docs
from tests.project.routes import api_routes
from triggers_project.options import OPTIONS
from webhooks.destinations.outcome import Failure
from webhooks.routing.filters import OPERATORS

ROOT = Path(__file__).resolve().parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def _section(title: str) -> str:
    match = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", OPERATIONS, re.S | re.M)
    assert match, f"docs/operations.md has no section {title}"
    return match[1]


def _rows(text: str) -> list[list[str]]:
    rows = [
        [cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if line.startswith("| `")
    ]
    assert rows
    return rows


def test_the_example_of_an_env_file_lists_every_setting() -> None:
    example = settings_docs.EXAMPLE.read_text()
    assert settings_docs.example(example) == example, "run python -m scripts.settings_docs"
    names = re.findall(r"^#?([A-Z_]+)=", example, re.M)
    assert len(names) == len(set(names))


def test_the_commands_table_lists_every_command_of_ours() -> None:
    documented = {re.match(r"`manage\.py (\S+)", row[0])[1].strip("`") for row in _rows(_section("Commands"))}  # type: ignore[index]
    commands = get_commands()
    assert documented <= set(commands)
    ours = {name for name, app in commands.items() if app in {"orgs", "events", "webhooks", "core"}}
    assert ours <= documented


def test_the_endpoints_table_lists_every_route_with_its_methods_and_scopes() -> None:
    documented = {row[0].strip("`"): (row[1], row[2]) for row in _rows(_section("Endpoints"))}
    actual = {}
    for path, scopes in api_routes().items():
        if scopes is None:
            actual[path] = ("GET", "open")
        else:
            named = [scope.value for scope in dict.fromkeys(scopes.values()) if scope is not None]
            actual[path] = (", ".join(scopes), ", ".join(f"`{name}`" for name in named) or "any")
    assert documented == actual


def test_every_error_class_is_explained() -> None:
    for failure in Failure:
        assert f"| `{failure.value}` |" in OPERATIONS


def _logged_events() -> set[str]:
    """Return the names of all lines that our code logs."""
    found = set()
    for app in ("core", "orgs", "events", "webhooks", "portal", "console", "triggers_project"):
        for path in (ROOT / app).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                    name = node.args[0]
                    if ast.unparse(node.func.value) == "log" and isinstance(name, ast.Constant):
                        found.add(str(name.value))
    return found


def test_every_line_of_the_log_is_explained() -> None:
    rows = _rows(_section("Monitoring").split("**Logs**")[1])
    assert {name for row in rows for name in re.findall(r"`(\w+)`", row[0])} == _logged_events()


def _find(named: str, near: list[Path]) -> Path | None:
    """Return the file or folder that the map names, from the root, a neighbor's folder, or a neighbor's package."""
    for folder in (ROOT, *(place if place.is_dir() else place.parent for place in near)):
        for start in (folder, folder.parent):
            if (start / named).exists():
                return start / named
    return None


def test_everything_that_the_map_sends_people_to_is_there() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tables = [part.split("\n\n")[0] for part in page.split("| to change or add |")[1:]]
    screen_lines = sum(-(-len(line) // 150) for line in tables[0].splitlines())
    assert screen_lines <= 56, "the map is two screens at most; the rest is in More places"
    lines = [line for table in tables for line in table.splitlines()[2:]]
    rows = [re.split(r" \| ?", line.strip("| "), maxsplit=2) for line in lines]
    assert len(rows) > 30
    settings = {option.name for option in OPTIONS}
    for row in rows:
        places: list[Path] = []
        words = []
        tokens = re.findall(r"`([^`]+)`", " ".join(row[1:]))
        for token in sorted(tokens, key=lambda token: not token.endswith("/")):
            if "<" in token:  # stands for several
                continue
            if re.fullmatch(r"[\w./-]+(/|\.py|\.md|\.yaml)", token):
                place = _find(token, places)
                assert place, f"there is no {token}: {row[0]}"
                places.append(place)
            elif re.fullmatch(r"\w+(\.\w+)?", token) and token != "settings.NAME":
                words += token.split(".")
        sources = [
            source.read_text()
            for place in places
            for source in (place.rglob("*.py") if place.is_dir() else [place] if place.suffix != ".md" else [])
        ]
        for word in words:
            if sources and word not in settings:
                assert any(re.search(rf"\b{word}\b", text) for text in sources), f"where is {word}: {row[0]}"


def test_every_test_that_the_reliability_page_names_exists() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| promise |")]
    assert rows
    for row in rows:
        cell = re.split(r"(?<!\\) \| ", row.strip("| "))[-1]
        names = re.findall(r"`((?:[\w/]+\.py|\u2026)(?:::\w+)?)`", cell)
        assert names, f"no test is named in: {row}"
        path = ""
        for name in names:
            file, _, function = name.partition("::")
            path = path if file == "\u2026" else file
            source = ROOT / "tests" / path
            assert source.is_file(), f"there is no tests/{path}"
            assert not function or re.search(rf"^def {function}\(", source.read_text(), re.M), (
                f"{path} has no {function}"
            )


def test_the_readme_s_signature_check_works() -> None:
    from standardwebhooks import Webhook

    from webhooks.destinations.http.signing import new_secret, secret_key, sign

    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert code
    scope: dict[str, object] = {}
    exec(code[1], scope)
    secret = new_secret()
    headers = {"webhook-id": "a", "webhook-timestamp": "1795487955"}
    headers["webhook-signature"] = "v1,bm90IGl0 " + sign([secret_key(secret)], "a", 1795487955, b"{}")
    is_genuine = scope["is_genuine"]
    assert callable(is_genuine)
    assert is_genuine(secret, headers, b"{}")
    assert not is_genuine(secret, headers, b"{ }")
    assert not is_genuine(new_secret(), headers, b"{}")
    assert (
        Webhook(secret).sign(
            "a", __import__("datetime").datetime.fromtimestamp(1795487955, __import__("datetime").UTC), "{}"
        )
        in headers["webhook-signature"]
    )


def test_the_guide_has_every_operator_of_payload_filters() -> None:
    page = (ROOT / "docs" / "routing.md").read_text()
    assert not [name for name in OPERATORS if f"`{name}`" not in page]
