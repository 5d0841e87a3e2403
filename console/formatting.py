"""What the pages show: hostile text as text, states, links, small tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from core.pretty import excerpt, pretty_json, visible

SHOWN_CHARACTERS = 65_536


def code_block(text: str) -> SafeString:
    """Return hostile text, indented if it is JSON, escaped, in a box of bounded length."""
    if not text:
        return SafeString("-")
    shown, left_out = excerpt(visible(pretty_json(text)), SHOWN_CHARACTERS)
    box = format_html('<pre class="hostile">{}</pre>', shown)
    if left_out:
        box += format_html('<p class="help">{} further characters are not shown.</p>', left_out)
    return box


def short(text: str, most: int = 80) -> str:
    """Return the beginning of hostile text on one line, for a list."""
    line = visible(text).replace("\n", " ").replace("\t", " ")
    return line if len(line) <= most else line[: most - 1] + "…"


def badge(word: str, label: str | None = None) -> SafeString:
    """Return a state as a colored word.  word: one of our own states, used as a CSS class."""
    return format_html('<span class="state state-{}">{}</span>', word, label or word)


def object_link(row: Model | None, label: str | None = None) -> SafeString | str:
    """Return a link to the row's own page."""
    if row is None:
        return "-"
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, short(label if label is not None else str(row)))


def list_link(model: str, label: str, **filters: object) -> SafeString:
    """Return a link to a model's list with filters.  model: such as `webhooks_delivery`."""
    url = reverse(f"admin:{model}_changelist", query=filters)
    return format_html('<a href="{}">{}</a>', url, label)


def lines(parts: Iterable[str]) -> SafeString:
    """Return texts below each other."""
    return format_html_join("\n", "<div>{}</div>", ((part,) for part in parts))


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> SafeString:
    """Return a small table; cells are escaped unless they are safe already."""
    body = format_html_join(
        "\n", "<tr>{}</tr>", ((format_html_join("", "<td>{}</td>", ((c,) for c in row)),) for row in rows)
    )
    if not body:
        return SafeString("none")
    return format_html(
        '<table class="inner"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>',
        format_html_join("", "<th>{}</th>", ((name,) for name in head)),
        body,
    )
