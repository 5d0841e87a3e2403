"""What is printed: tables for people, JSON for programs."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec
import typer

from triggers_client.json_text import characters

_COLORS = {
    "delivered": "green", "active": "green", "processed": "green", "accepted": "green", "failed": "red",
    "failing": "red", "error": "red", "retrying": "yellow", "paused": "yellow", "held": "yellow", "disabled": "yellow",
}  # fmt: skip


def say(text: str = "") -> None:
    """Print a line at once."""
    typer.echo(text)
    sys.stdout.flush()


def complain(text: str) -> None:
    """Print what went wrong."""
    typer.echo(typer.style("Error: ", fg="red") + text, err=True)


def note(text: str) -> None:
    """Print what to know beside the output."""
    typer.echo(typer.style("Warning: ", fg="yellow") + printable(text), err=True)


def print_json(value: Any) -> None:
    """Print a value as indented JSON."""
    typer.echo(indented(msgspec.json.encode(value)))


def indented(text: bytes) -> str:
    """Return a JSON text with a line for each member; numbers stay as they were written."""
    return msgspec.json.format(characters(text), indent=2).decode()


def print_table(titles: Sequence[str], rows: Iterable[Sequence[Any]], nothing: str) -> None:
    """Print a table, or what to say if it has no rows."""
    texts = [[_cell(value) for value in row] for row in rows]
    if not texts:
        typer.echo(nothing, err=True)
        return
    widths = [max(len(row[column]) for row in [list(titles), *texts]) for column in range(len(titles))]
    typer.echo(typer.style(_line(titles, widths), bold=True))
    for row in texts:
        typer.echo(_line(row, widths, _COLORS))


def _line(cells: Sequence[str], widths: Sequence[int], colors: dict[str, str] | None = None) -> str:
    padded = [
        typer.style(cell, fg=(colors or {}).get(cell)) + " " * (width - len(cell)) if cell in (colors or {}) else
        cell.ljust(width)
        for cell, width in zip(cells, widths, strict=True)
    ]  # fmt: skip
    return "  ".join(padded).rstrip()


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value)) or "-"


def printable(text: str) -> str:
    """Return a text without what would move the cursor or change the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
