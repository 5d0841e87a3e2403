"""Links to the admin's pages, and a table with them."""

from __future__ import annotations

from collections.abc import Iterable

from django.db.models import Model
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from webhooks.display.formatting import delivery_badge, format_time, last_result, next_attempt, short, table
from webhooks.models import Delivery


def object_link(row: Model | None, label: str | None = None) -> SafeString | str:
    """Return a link to the row's own page, or a dash for no row."""
    if row is None:
        return "-"
    url = reverse(f"admin:{row._meta.app_label}_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, short(label if label is not None else str(row)))


def list_link(model: str, label: str, **filters: object) -> SafeString:
    """Return a link to a model's list with filters.  model: such as `webhooks_delivery`."""
    url = reverse(f"admin:{model}_changelist", query=filters)
    return format_html('<a href="{}">{}</a>', url, label)


def delivery_table(deliveries: Iterable[Delivery]) -> SafeString:
    """Return deliveries as a table with links to each and to its subscription."""
    return table(
        ("delivery", "subscription", "status", "attempts", "last result", "next attempt", "completed"),
        (
            (
                object_link(row, str(row.pk)),
                object_link(row.subscription),
                delivery_badge(row),
                row.attempt_count,
                last_result(row),
                next_attempt(row),
                format_time(row.completed_at),
            )
            for row in deliveries
        ),
    )
