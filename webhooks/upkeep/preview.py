"""What a retry, replay, or recovery of many deliveries would do, counted before it is confirmed.

Counting stops at COUNT_TO: a preview of a million rows costs as much as one of ten thousand, and says so.
"""

from __future__ import annotations

import datetime
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from django.conf import settings

from core.ids import derive_id
from events.models import ERASED, Event, EventStatus
from webhooks.delivery_filters import matching_deliveries
from webhooks.models import Delivery, Subscription
from webhooks.routing.selection import erased_among, wanted_events
from webhooks.states import (
    STATE_COLUMNS,
    Breaker,
    DeliveryState,
    SubscriptionState,
    delivery_state,
    with_state,
)
from webhooks.upkeep import replay

COUNT_TO = 10_000
# For a subscription whose filter has to read the data of each event.
COUNT_TO_FILTERED = 1_000
# For this many subscriptions, the preview says what will happen to their deliveries.
MOST_SUBSCRIPTIONS = 1000


class Fate(StrEnum):
    """What happens to a delivery that a run makes due."""

    DUE = "due"
    RATE_LIMIT = "rate_limit"
    CIRCUIT_BREAKER = "circuit_breaker"
    RETRY_AFTER = "retry_after"
    HELD = "held"
    SENDING_DISABLED = "sending_disabled"
    LEFT_ALONE = "left_alone"  # its subscription was deleted


@dataclass(frozen=True, slots=True)
class Expected:
    """How many deliveries of a subscription will meet a fate.  until: the end of its pause, if it has one."""

    fate: Fate
    subscription: Subscription
    count: int
    until: datetime.datetime | None = None


@dataclass(frozen=True, slots=True)
class FailureCause:
    """Why the last attempts of deliveries in one state failed."""

    state: str
    error: str
    status_code: int | None


@dataclass
class Preview:
    """total: matching deliveries, counted to COUNT_TO.  is_cut: there are more than were counted.

    by_cause: how many of each cause, the most frequent first. delivered: how many more
    match that were delivered, which a run doesn't take unless told to; None if it does. erased: how many more match and
    are left alone, because their events' payloads were erased. is_by_name: the deliveries were named one by one.
    others: how many of them are in which other state.
    """

    total: int = 0
    is_cut: bool = False
    by_cause: list[tuple[FailureCause, int]] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    by_organization: dict[uuid.UUID | None, int] = field(default_factory=dict)
    delivered: int | None = None
    others: dict[str, int] = field(default_factory=dict)
    is_by_name: bool = False
    erased: int = 0

    @property
    def seen(self) -> int:
        """Return how many deliveries a run visits, also those that it leaves alone."""
        return self.total + self.erased

    def of_fate(self, fate: Fate) -> int:
        """Return how many deliveries meet a fate."""
        return sum(one.count for one in self.expected if one.fate is fate)


def preview(filters: Mapping[str, Any]) -> Preview:
    """Return what a retry or replay of what `filters` match would do."""
    states = replay.states_in(filters)
    found = Preview()
    causes: Counter[FailureCause] = Counter()
    by_subscription: Counter[uuid.UUID] = Counter()
    organizations: Counter[uuid.UUID | None] = Counter()
    columns = ("event_id", "subscription_id", "organization_id", "last_error", "last_status_code")
    for state in states:
        room = COUNT_TO - found.seen
        rows: list[Any] = list(replay.matching(filters, state).values_list(*columns, named=True)[: room + 1])
        found.is_cut = found.is_cut or len(rows) > room
        erased = erased_among({row.event_id for row in rows[:room]})
        for row in rows[:room]:
            if row.event_id in erased:
                found.erased += 1
                continue
            found.total += 1
            causes[FailureCause(state, row.last_error, row.last_status_code)] += 1
            by_subscription[row.subscription_id] += 1
            organizations[row.organization_id] += 1
    found.by_cause = causes.most_common()
    found.by_organization = dict(organizations)
    found.expected = expect(by_subscription)
    # If the filter is about failures, nothing that was delivered matches.
    if replay.DELIVERED not in states and not {"outcome", "failed_since"} & filters.keys():
        found.delivered = replay.matching(filters, replay.DELIVERED)[:COUNT_TO].count()
    if "deliveries" in filters:
        found.is_by_name = True
        named = matching_deliveries({"deliveries": filters["deliveries"]}).values_list(*STATE_COLUMNS)
        found.others = dict(Counter(state for row in named if (state := delivery_state(*row)) not in replay.STATES))
    return found


def expect(by_subscription: Mapping[uuid.UUID, int]) -> list[Expected]:
    """Return what happens to so many deliveries of each subscription once they are due, those of most first."""
    chosen = [pk for pk, _ in Counter(by_subscription).most_common(MOST_SUBSCRIPTIONS)]
    rows = {row.pk: row for row in with_state(Subscription.objects.filter(pk__in=chosen))}
    return [_expect(rows[pk], by_subscription[pk]) for pk in chosen if pk in rows]


def _expect(subscription: Any, count: int) -> Expected:
    until = None
    if subscription.deleted_at is not None:
        fate = Fate.LEFT_ALONE
    elif subscription.state == SubscriptionState.DISABLED:
        fate = Fate.HELD
    elif settings.DISABLE_WEBHOOK_DELIVERY:
        fate = Fate.SENDING_DISABLED
    elif subscription.breaker != Breaker.CLOSED:
        fate, until = Fate.CIRCUIT_BREAKER, subscription.paused_until
    elif subscription.paused_until is not None:
        fate, until = Fate.RETRY_AFTER, subscription.paused_until
    else:
        fate = Fate.DUE if subscription.deliveries_per_second is None else Fate.RATE_LIMIT
    return Expected(fate, subscription, count, until)


@dataclass
class RecoveryPreview:
    """What a recovery would do.  events: those since the time, counted to COUNT_TO; is_cut: there are more.

    wanted: those that the subscription wants.  missing: without a delivery, which the recovery creates.
    by_state: the others, by the state of their deliveries; the failed ones are sent again.
    """

    subscription: Subscription
    events: int = 0
    is_cut: bool = False
    wanted: int = 0
    missing: int = 0
    by_state: dict[str, int] = field(default_factory=dict)
    expected: list[Expected] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Return how many deliveries become due or held."""
        return self.missing + self.by_state.get(DeliveryState.FAILED, 0)


def preview_recovery(subscription: Subscription, since: datetime.datetime) -> RecoveryPreview:
    """Return what recovering the subscription's events since a time would do."""
    found = RecoveryPreview(subscription)
    rows = Event.objects.filter(
        organization_id=subscription.organization_id, created_at__gte=since, status=EventStatus.PROCESSED
    ).exclude(data=ERASED)
    most = COUNT_TO if subscription.filter is None else COUNT_TO_FILTERED
    seen = list(rows.order_by("created_at", "id").only("id", "type", "channels")[: most + 1])
    found.is_cut = len(seen) > most
    seen = seen[:most]
    wanted = wanted_events(subscription, seen)
    found.events, found.wanted = len(seen), len(wanted)
    states: Counter[str] = Counter()
    for part in _parts(wanted, 1000):
        ids = [derive_id(event_id, subscription.pk) for event_id in part]
        existing = Delivery.objects.filter(id__in=ids).values_list(*STATE_COLUMNS)
        states.update(delivery_state(*row) for row in existing)
    found.by_state = dict(states)
    found.missing = found.wanted - sum(states.values())
    found.expected = expect({subscription.pk: found.total}) if found.total else []
    return found


def _parts(ids: list[uuid.UUID], size: int) -> Iterable[list[uuid.UUID]]:
    return (ids[start : start + size] for start in range(0, len(ids), size))
