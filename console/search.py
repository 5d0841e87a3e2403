"""What a search finds: ids, names, URLs, and, within bounds, text in payloads.

Each look is served by an index, or reads a table that is small (organizations, subscriptions), or is bounded.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.db import connection
from django.db.models import BooleanField, F, Func, QuerySet, UUIDField, Value
from django.db.models.functions import Cast
from django.http import HttpRequest
from django.utils import timezone

from console.first_rows import first_rows
from console.lists import LIST_BOUND
from console.time_ranges import SPANS
from core.arrays import plain_array
from core.ids import first_id_since, parse_id
from events.models import Event
from orgs.models import Organization
from webhooks.models import Subscription

# Parts of names and addresses are looked for from this length on, and exact values of any.
SHORTEST_PART = 3
MOST_SUBSCRIPTIONS = 20
# Of all organizations, events of this age are looked through first.
RECENT = datetime.timedelta(days=1)
# Payloads are searched in so many of the newest events of the chosen time.
MOST_PAYLOADS = 20_000
LONGEST = 300


@dataclass(slots=True)
class Found:
    """The rows that a search names.  note: what users should know about how the search was done."""

    ids: list[uuid.UUID] = field(default_factory=list)
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scope:
    """Where to look: in one organization, if given, and in the time since, if given."""

    organization: uuid.UUID | None = None
    since: datetime.datetime | None = None
    span: str = ""

    @classmethod
    def of(cls, request: HttpRequest) -> Scope:
        """Return what the request's other filters say."""
        name, span = request.GET.get("created", ""), SPANS.get(request.GET.get("created", ""))
        organization = parse_id(request.GET.get("organization", ""))
        return cls(organization, timezone.now() - span[1], span[0].lower()) if span else cls(organization, None, name)


def _rows(statement: str, parameters: dict[str, Any]) -> list[uuid.UUID]:
    # Django's cursor writes the limits into the text, so that the planner knows them.
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return [found for (found,) in cursor.fetchall()]


def with_ids(rows: QuerySet[Any], ids: Iterable[uuid.UUID], name: str = "pk") -> QuerySet[Any]:
    """Return the rows of which the field with this name is one of the ids.

    One parameter: the ORM would write thousands of ids into each query one by one.
    """
    array = Cast(Value(plain_array(ids)), ArrayField(UUIDField()))
    is_one = Func(F(name), array, arg_joiner=" = ANY(", template="%(expressions)s)", output_field=BooleanField())
    return rows.filter(is_one)


def is_part(term: str) -> bool:
    """Return whether a term is long enough to be looked for within names and addresses."""
    return SHORTEST_PART <= len(term) <= LONGEST


# SQL, here and below, because the ORM has no LATERAL joins, and can't filter what a LIMIT has cut off.

# The newest events of a type.  Types are indexed by organization.  What is accepted waits for milliseconds, or in a
# backlog, of which the newest are looked at.
_OF_TYPE = "type = %(type)s AND status IN ('processed', 'error') AND created_at >= %(since)s::timestamptz"
_BY_TYPE = f"""{first_rows("events_event", _OF_TYPE, newest=True)}
SELECT id FROM (
    SELECT * FROM found
    UNION ALL
    SELECT e.id, e.created_at FROM orgs_organization o CROSS JOIN LATERAL (
        SELECT id, created_at, type FROM events_event WHERE organization_id = o.id AND status = 'accepted'
        ORDER BY created_at DESC, id DESC LIMIT %(most)s
    ) AS e
    WHERE e.type = %(type)s AND (%(organization)s::uuid IS NULL OR o.id = %(organization)s)
) AS newest ORDER BY created_at DESC, id DESC LIMIT %(most)s
"""  # noqa: S608 - constants of ours
# Looks into the payloads of a bounded number of the newest events.
_BY_PAYLOAD = """
SELECT id FROM (
    SELECT id, created_at, data FROM events_event
    WHERE id >= %(first)s AND created_at >= %(since)s {organization} ORDER BY id DESC LIMIT %(payloads)s
) AS newest WHERE strpos(data, %(text)s) > 0 ORDER BY id DESC LIMIT %(most)s
"""
# What is being delivered isn't in the indexes of lists (`Delivery.LIST_PARTS`): it is little, and found by its leases.
_OTHERS = "status IN ('pending', 'delivered', 'failed', 'held', 'cancelled')"
# A UNION, because no index has both what is being delivered and everything else.
_OF_EVENTS = f"""
(SELECT id FROM webhooks_delivery WHERE event_id = ANY(%(ids)s::uuid[]) AND {_OTHERS} LIMIT %(most)s)
UNION ALL
(SELECT id FROM webhooks_delivery WHERE event_id = ANY(%(ids)s::uuid[]) AND status = 'delivering' LIMIT %(most)s)
"""  # noqa: S608
# The same, and for each subscription no more rows than are wanted.
_OF_SUBSCRIPTIONS = f"""
SELECT d.id FROM unnest(%(ids)s::uuid[]) AS s(id) CROSS JOIN LATERAL (
    (SELECT id, created_at FROM webhooks_delivery WHERE subscription_id = s.id AND {_OTHERS}
     ORDER BY created_at DESC, id DESC LIMIT %(most)s)
    UNION ALL
    (SELECT id, created_at FROM webhooks_delivery WHERE subscription_id = s.id AND status = 'delivering'
     ORDER BY created_at DESC, id DESC LIMIT %(most)s)
) AS d ORDER BY d.created_at DESC, d.id DESC LIMIT %(most)s
"""  # noqa: S608


def events_of_type(name: str, scope: Scope, since: datetime.datetime | None = None) -> list[uuid.UUID]:
    """Return the newest events of a type.  since: none that are older."""
    if len(name) > 255:
        return []
    values = {"type": name, "organization": scope.organization, "most": LIST_BOUND}
    if scope.organization is None and since is None:
        # Mostly there are enough, and each partition that isn't read saves a look for each organization.
        found = _rows(_BY_TYPE, {**values, "since": timezone.now() - RECENT})
        if len(found) >= LIST_BOUND:
            return found
    return _rows(_BY_TYPE, {**values, "since": since or "-infinity"})


def events_with_payload(text: str, scope: Scope) -> Found:
    """Return events whose data holds a text, among the newest of the chosen time; without one, only a note."""
    if not is_part(text):
        return Found()
    if scope.since is None:
        return Found(note="Payloads were not searched: choose a creation time, such as the last hour, to include them.")
    narrowed = "AND organization_id = %(organization)s" if scope.organization else ""
    ids = _rows(
        _BY_PAYLOAD.format(organization=narrowed),
        {
            "first": first_id_since(scope.since),
            "since": scope.since,
            "text": text,
            "organization": scope.organization,
            "payloads": MOST_PAYLOADS,
            "most": LIST_BOUND,
        },
    )
    return Found(ids, f"Payloads were searched in the newest {MOST_PAYLOADS:,} events of the {scope.span}.")


def deliveries_of_events(ids: Iterable[uuid.UUID]) -> list[uuid.UUID]:
    """Return deliveries of these events."""
    chosen = list(ids)
    return _rows(_OF_EVENTS, {"ids": chosen, "most": 5 * LIST_BOUND}) if chosen else []


def subscriptions_named(term: str, scope: Scope, most: int = LIST_BOUND) -> list[uuid.UUID]:
    """Return subscriptions whose uid is a term, or whose URL or organization's name holds it, the newest first."""
    rows = Subscription.objects.all()
    if scope.organization:
        rows = rows.filter(organization_id=scope.organization)
    by_uid = list(rows.filter(uid=term).order_by("-id").values_list("pk", flat=True)[:most])
    if not is_part(term):
        return by_uid
    by_url = rows.filter(url__icontains=term).order_by("-id").values_list("pk", flat=True)[:most]
    owners = Organization.objects.filter(name__icontains=term).values("pk")
    by_owner = rows.filter(organization_id__in=owners).order_by("-id").values_list("pk", flat=True)[:most]
    return list(dict.fromkeys([*by_uid, *by_url, *by_owner]))[:most]


def organization_named(term: str) -> uuid.UUID | None:
    """Return the one organization with this name, or with this as a part of its name."""
    if not is_part(term):
        return None
    for match in ({"name__iexact": term}, {"name__icontains": term}):
        found = list(Organization.objects.filter(**match).values_list("pk", flat=True)[:2])
        if len(found) == 1:
            return found[0]
    return None


def find_deliveries(term: str, scope: Scope) -> Found:
    """Return deliveries by event type, part of the endpoint's URL or the organization's name, or payload text."""
    found = Found(deliveries_of_events(events_of_type(term, scope)))
    endpoints = subscriptions_named(term, scope, MOST_SUBSCRIPTIONS + 1)
    if endpoints:
        found.ids += _rows(_OF_SUBSCRIPTIONS, {"ids": endpoints[:MOST_SUBSCRIPTIONS], "most": LIST_BOUND})
        if len(endpoints) > MOST_SUBSCRIPTIONS:
            found.note = f"Only the newest {MOST_SUBSCRIPTIONS} of the endpoints that match were searched."
    if not found.ids:
        by_payload = events_with_payload(term, scope)
        found = Found(deliveries_of_events(by_payload.ids), by_payload.note)
    return found


def events_named(term: str, scope: Scope) -> list[uuid.UUID]:
    """Return events by dedup id or type."""
    if len(term) > LONGEST:
        return []
    by_dedup_id = Event.objects.filter(dedup_id=term).values_list("pk", flat=True)[:LIST_BOUND]
    return [*by_dedup_id, *events_of_type(term, scope, scope.since)]


def filter_for(term: str, *, events: bool = False) -> tuple[str, uuid.UUID] | None:
    """Return the filter and the row's id if a term names an event, a subscription or an organization.

    events: whether the list is one of events, which has no filters by the first two.
    """
    row_id = parse_id(term)
    named: list[tuple[str, uuid.UUID | None]] = []
    if row_id is not None:
        if not events:
            named += [("event", _id_of(Event, pk=row_id)), ("subscription", _id_of(Subscription, pk=row_id))]
        named.append(("organization", _id_of(Organization, pk=row_id)))
    elif not events:
        by_dedup_id = Event.objects.filter(dedup_id=term).order_by("-created_at").values_list("pk", flat=True).first()
        exact = Subscription.objects.filter(url=term).order_by("deleted_at", "-created_at")
        named += [("event", by_dedup_id), ("subscription", exact.values_list("pk", flat=True).first())]
        # Two organizations may use the same uid.
        by_uid = list(Subscription.objects.filter(uid=term, deleted_at=None).values_list("pk", flat=True)[:2])
        named.append(("subscription", by_uid[0] if len(by_uid) == 1 else None))
    if row_id is None and not any(found for _, found in named):
        named.append(("organization", organization_named(term)))
        if not events and is_part(term):
            endpoints = list(Subscription.objects.filter(url__icontains=term).values_list("pk", flat=True)[:2])
            named.append(("subscription", endpoints[0] if len(endpoints) == 1 else None))
    return next(((name, found) for name, found in named if found), None)


def _id_of(model: type[Event | Subscription | Organization], **match: object) -> uuid.UUID | None:
    found: uuid.UUID | None = model._default_manager.filter(**match).values_list("pk", flat=True).first()
    return found
