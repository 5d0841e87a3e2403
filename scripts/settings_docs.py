"""What is written about each setting, from its declaration: the end of .env.example, and the tables of
docs/reference/settings.md, which `scripts.reference_docs` writes.  `python -m scripts.settings_docs` writes the former.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from pathlib import Path

import yaml

from triggers_project.options import OPTIONS, Option

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / ".env.example"
COMPOSE = ROOT / "docker-compose.yml"

EVERYTHING_ELSE = "# --- Everything else, with its default. Written by `python -m scripts.settings_docs`. ---\n"


def tables() -> str:
    """Return a table for each section of the settings."""
    sections = itertools.groupby(OPTIONS, lambda option: option.section)
    return "".join(_table(title, list(group)) for title, group in sections)


def _table(title: str, options: list[Option[object]]) -> str:
    rows = [
        f"| `{option.name}` | {option.kind.expected} | {f'`{option.default}`' if option.default else chr(0x2013)} "
        f"| {option.meaning} |\n"
        for option in options
    ]
    return f"## {title}\n\n| variable | value | default | meaning |\n|---|---|---|---|\n{''.join(rows)}\n"


def example(text: str) -> str:
    """Return .env.example with a comment for each setting that it doesn't explain and that compose doesn't fix."""
    head = text.split(EVERYTHING_ELSE)[0]
    told = {*re.findall(r"^([A-Z_]+)=", head, re.M), *_fixed_by_compose()}
    lines = [_example(option) for option in OPTIONS if option.name not in told]
    return head + EVERYTHING_ELSE + "".join(lines)


def _example(option: Option[object]) -> str:
    meaning = textwrap.fill(option.meaning, 110, initial_indent="# ", subsequent_indent="# ")
    return f"\n{meaning}\n#{option.name}={'' if option.derive else option.default}\n"


def _fixed_by_compose() -> set[str]:
    """Return the variables whose value docker-compose.yml gives a service by itself."""
    services = yaml.safe_load(COMPOSE.read_text())["services"].values()
    return {
        name
        for service in services
        if service.get("image") == "triggers-api"
        for name, value in service["environment"].items()
        if f"${{{name}:" not in str(value)
    }


def main() -> None:
    """Write .env.example."""
    EXAMPLE.write_text(example(EXAMPLE.read_text()))


if __name__ == "__main__":
    main()
