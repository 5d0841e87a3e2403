"""Which deliveries failed, why, and a button for each cause that sends them again."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from psycopg.rows import class_row

from console.dashboard import COUNT_TO, bounded
from console.formatting import list_link
from console.time_ranges import SPANS
from core.db import server_cursor
from orgs.models import Organization
from webhooks.delivery_filters import outcome_name
from webhooks.display.causes import words_for
from webhooks.display.formatting import badge, short
from webhooks.display.series import Span
from webhooks.rollups import NO_ID

SHOWN_CAUSES = 8
SHOWN_ORGANIZATIONS = 8

# SQL, because the ORM can't group what a LIMIT has cut off.  Each part looks at a bounded number of index entries, and
# at no rows (the indexes have the causes), so the page is no slower on a bad day.
_COUNT_FAILED = """
WITH counted AS MATERIALIZED (
    SELECT 'failed' AS state, organization_id, last_error, last_status_code, count(*) AS number FROM (
        SELECT organization_id, last_error, last_status_code FROM webhooks_delivery
        WHERE status = 'failed' AND completed_at >= statement_timestamp() - %(age)s::interval {narrowed} LIMIT %(most)s
    ) AS failed GROUP BY organization_id, last_error, last_status_code
    UNION ALL
    SELECT 'retrying', id, last_error, last_status_code, count(*) FROM (
        SELECT o.id, d.last_error, d.last_status_code FROM orgs_organization o CROSS JOIN LATERAL (
            SELECT last_error, last_status_code FROM webhooks_delivery
            WHERE organization_id = o.id AND status = 'pending' AND NOT last_error = '' LIMIT %(most)s
        ) AS d WHERE %(organization)s::uuid IS NULL OR o.id = %(organization)s LIMIT %(most)s
    ) AS retrying GROUP BY id, last_error, last_status_code
)
SELECT state, last_error, last_status_code, NULL::uuid AS organization_id, sum(number)::bigint AS number FROM counted
GROUP BY state, last_error, last_status_code
UNION ALL (
    SELECT '', '', NULL, organization_id, sum(number)::bigint FROM counted
    GROUP BY organization_id ORDER BY sum(number) DESC, organization_id LIMIT %(organizations)s
)
"""


@dataclass(frozen=True, slots=True)
class _Counted:
    """A row of _COUNT_FAILED: of a state and a cause, or, with neither, of an organization."""

    state: str
    last_error: str
    last_status_code: int | None
    organization_id: uuid.UUID | None
    number: int


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """Deliveries in one state whose last attempts failed for one cause.  url: their list, which takes `retry`."""

    state: SafeString
    cause: str
    deliveries: SafeString
    url: str


@dataclass(frozen=True, slots=True)
class Failures:
    """The largest groups.  organizations: links to those with most of them, unless one is chosen.

    is_cut: counting stopped, so there are more deliveries.  more: how many groups aren't shown.

    not_a_row: Django requires a selected row, even if the action is for all that match.
    """

    groups: list[FailedGroup]
    organizations: list[SafeString]
    is_cut: bool
    more: int
    not_a_row: uuid.UUID = NO_ID


def read_failures(span: Span, organization_id: uuid.UUID | None) -> Failures:
    """Return what failed for good in the span, and what is retrying now, of an organization or of all."""
    statement = _COUNT_FAILED.format(narrowed="AND organization_id = %(organization)s" if organization_id else "")
    values: dict[str, Any] = {
        "age": SPANS[span.name][1], "organization": organization_id, "most": COUNT_TO,
        "organizations": SHOWN_ORGANIZATIONS,
    }  # fmt: skip
    with server_cursor(class_row(_Counted)) as cursor:
        # Not prepared: the plan depends on how long the span is.
        rows = cursor.execute(statement, values, prepare=False).fetchall()
    states: Counter[str] = Counter()
    causes: Counter[tuple[str, str]] = Counter()
    owners: dict[uuid.UUID, int] = {}
    for row in rows:
        if row.organization_id is not None:
            owners[row.organization_id] = row.number
        else:
            states[row.state] += row.number
            causes[row.state, outcome_name(row.last_error, row.last_status_code)] += row.number
    chosen = {"organization": str(organization_id)} if organization_id else {}
    largest = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
    return Failures(
        [_group(*cause, number, span, chosen) for cause, number in largest[:SHOWN_CAUSES]],
        [] if organization_id else _links(owners, span),
        any(number >= COUNT_TO for number in states.values()),
        max(0, len(causes) - SHOWN_CAUSES),
    )


def _links(owners: Mapping[uuid.UUID, int], span: Span) -> list[SafeString]:
    """Return links to the home of organizations, each with its number of deliveries."""
    names = Organization.objects.only("name").in_bulk(list(owners))
    return [
        format_html(
            '<a href="{}">{}</a> {}',
            reverse("admin:index", query={"span": span.name, "organization": str(owner)}),
            short(names[owner].name, 40),
            bounded(number),
        )
        for owner, number in owners.items()
        if owner in names
    ]


def _group(state: str, outcome: str, number: int, span: Span, chosen: Mapping[str, str]) -> FailedGroup:
    # In the order of the list's own filters.
    query = {**chosen, "status": f"failed-{span.name}" if state == "failed" else state, "outcome": outcome}
    return FailedGroup(
        badge(state),
        words_for(outcome),
        list_link("webhooks_delivery", bounded(number), **query),
        reverse("admin:webhooks_delivery_changelist", query=query),
    )
