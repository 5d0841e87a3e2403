"""Notifies organizations and the operator when an endpoint fails, is disabled, or recovers, when deliveries fail, and
when a key expires.

The sweep looks for news in the queues, which have their endpoints' failures, in what `webhooks.notices` has noted, and
in the keys.  News is marked as told in the transaction that stores the operational event and the messages to the
operator, so that a worker that is killed loses nothing and tells nothing twice.

An operational event goes through the engine as every event does, to the organization's operational subscriptions.
Failures of those subscriptions make no operational event, which would go in circles; only the operator is told that
they fail, were disabled, or have recovered.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import orjson
import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q
from django.db.models.functions import Now
from django.utils import timezone
from psycopg.rows import scalar_row

from core.db import is_transient, server_cursor
from core.url_prefix import full_path
from core.wakeups import EVENTS, wake
from events.ingest import ingest
from events.payload import OPERATIONAL_PREFIX, NewEvent
from orgs.models import ApiKey, Organization
from webhooks.models import Delivery, DeliveryStatus, Notice, NoticeKind, Subscription, SubscriptionQueue
from webhooks.upkeep.operator_messages import send_to_operator

log = structlog.get_logger()

# For each kind, in one round of the sweep.
TOLD_AT_A_TIME = 100
COUNT_WAITING_TO = 10_000

# Endpoints that fail and of which nobody was told, or that have recovered and fail again.  SQL, because the ORM joins
# only along relations, and a notice has none.
FIND_FAILING = """
SELECT q.subscription_id FROM webhooks_subscriptionqueue q
LEFT JOIN webhooks_notice n ON n.subject_id = q.subscription_id AND n.kind = 'endpoint.failing'
WHERE q.failing_since <= statement_timestamp() - make_interval(secs => %(after)s) AND q.accepts_deliveries
  AND n.is_open IS NOT TRUE
  AND coalesce(n.told_at <= statement_timestamp() - make_interval(secs => %(interval)s), true)
LIMIT %(rows)s
"""
# Endpoints that were reported as failing, and whose last request since has succeeded.
FIND_RECOVERED = """
SELECT n.subject_id FROM webhooks_notice n
JOIN webhooks_subscriptionqueue q ON q.subscription_id = n.subject_id
LEFT JOIN webhooks_notice r ON r.subject_id = n.subject_id AND r.kind = 'endpoint.recovered'
WHERE n.is_open AND n.kind = 'endpoint.failing' AND q.failing_since IS NULL AND q.last_success_at > n.since
  AND coalesce(r.told_at <= statement_timestamp() - make_interval(secs => %(interval)s), true)
LIMIT %(rows)s
"""


def tell() -> int:
    """Send the notifications about endpoints; return how many."""
    parameters = {
        "after": settings.NOTIFY_FAILING_AFTER,
        "interval": settings.NOTIFICATION_INTERVAL,
        "rows": TOLD_AT_A_TIME,
    }
    found: list[Callable[[], bool]] = [partial(_tell_failing, one) for one in _find(FIND_FAILING, parameters)]
    found += [partial(_tell_recovered, one) for one in _find(FIND_RECOVERED, parameters)]
    found += [partial(_tell_noted, *one) for one in _find_noted()]
    return _tell_each(found)


def tell_of_keys() -> int:
    """Send the notifications about keys that expire soon; return how many."""
    soon = Now() + datetime.timedelta(seconds=settings.NOTIFY_KEY_EXPIRING_WITHIN)
    told = Notice.objects.filter(subject_id=OuterRef("pk"), kind=NoticeKind.KEY_EXPIRING)
    expiring = ApiKey.objects.filter(~Exists(told), expires_at__gt=Now(), expires_at__lte=soon, revoked_at=None)
    ids = expiring.order_by("expires_at").values_list("pk", flat=True)[:TOLD_AT_A_TIME]
    return _tell_each([partial(_tell_expiring, key_id) for key_id in ids])


def _find(statement: str, parameters: Mapping[str, Any]) -> list[uuid.UUID]:
    with server_cursor(scalar_row) as cursor:
        return cursor.execute(statement, parameters).fetchall()


def _find_noted() -> list[tuple[uuid.UUID, str]]:
    """Return what was noted and hasn't been told yet, unless the same was told a short time ago."""
    before = Now() - datetime.timedelta(seconds=settings.NOTIFICATION_INTERVAL)
    noted = Notice.objects.filter(Q(told_at=None) | Q(told_at__lte=before), since__isnull=False, is_open=False)
    return list(noted.order_by("since").values_list("subject_id", "kind")[:TOLD_AT_A_TIME])


def _tell_each(found: Iterable[Callable[[], bool]]) -> int:
    """Run each in a separate transaction, so that one that fails doesn't affect the others."""
    told = 0
    for one in found:
        try:
            with transaction.atomic():
                told += one()
        except Exception as error:
            if is_transient(error):
                raise
            log.error("notification_failed", error=repr(error)[:300])
    if told:
        wake(EVENTS)
    return told


def _lock(subject_id: uuid.UUID, kind: NoticeKind, organization_id: uuid.UUID) -> Notice:
    """Return the locked notice of a kind, so that no other worker tells it meanwhile."""
    Notice.objects.get_or_create(subject_id=subject_id, kind=kind, defaults={"organization_id": organization_id})
    return Notice.objects.select_for_update().get(subject_id=subject_id, kind=kind)


def _mark_told(notice: Notice, **more: Any) -> None:
    Notice.objects.filter(pk=notice.pk).update(**{"since": None, "number": 0, "told_at": Now(), **more})


def _queue(subscription_id: uuid.UUID) -> SubscriptionQueue | None:
    """Return the queue of a subscription with the subscription; None if that is deleted."""
    rows = SubscriptionQueue.objects.select_related("subscription__organization")
    return rows.filter(pk=subscription_id, subscription__deleted_at=None).first()


def _tell_failing(subscription_id: uuid.UUID) -> bool:
    queue = _queue(subscription_id)
    if queue is None or queue.failing_since is None:
        return False  # it has recovered meanwhile
    notice = _lock(subscription_id, NoticeKind.ENDPOINT_FAILING, queue.organization_id)
    if notice.is_open:
        return False
    _mark_told(notice, since=queue.failing_since, is_open=True)
    cause = _cause(queue)
    sentence = (
        f"The endpoint {_name(queue.subscription)} has been failing since {_time(queue.failing_since)} "
        f"({_words(cause)})."
    )
    _publish_endpoint(NoticeKind.ENDPOINT_FAILING, queue, sentence, {"since": queue.failing_since, "cause": cause})
    return True


def _tell_recovered(subscription_id: uuid.UUID) -> bool:
    queue = _queue(subscription_id)
    if queue is None:
        return False
    failing = _lock(subscription_id, NoticeKind.ENDPOINT_FAILING, queue.organization_id)
    if not failing.is_open:
        return False
    # The time until it may be reported as failing again begins when that was told.
    Notice.objects.filter(pk=failing.pk).update(since=None, is_open=False)
    _mark_told(_lock(subscription_id, NoticeKind.ENDPOINT_RECOVERED, queue.organization_id))
    sentence = (
        f"The endpoint {_name(queue.subscription)}, which had been failing since {_time(failing.since)}, works again."
    )
    _publish_endpoint(
        NoticeKind.ENDPOINT_RECOVERED, queue, sentence, {"since": failing.since, "recovered_at": queue.last_success_at}
    )
    return True


def _tell_noted(subject_id: uuid.UUID, kind: str) -> bool:
    notice = Notice.objects.select_for_update().filter(subject_id=subject_id, kind=kind).first()
    if notice is None or notice.since is None:
        return False
    queue = _queue(subject_id)
    if queue is None:
        notice.delete()
        return False
    if kind == NoticeKind.ENDPOINT_DISABLED:
        if queue.subscription.is_active:  # somebody has enabled it meanwhile
            Notice.objects.filter(pk=notice.pk).update(since=None, number=0)
            return False
        _mark_told(notice)
        _publish_disabled(queue, notice)
    elif queue.subscription.is_operational:
        Notice.objects.filter(pk=notice.pk).update(since=None, number=0)
        return False
    else:
        _mark_told(notice)
        _publish_failed(queue, notice)
    return True


def _publish_disabled(queue: SubscriptionQueue, notice: Notice) -> None:
    detail = notice.detail
    sentence = f"The subscription to {_name(queue.subscription)} was disabled. {detail['reason']}"
    cause = {
        "automatically": detail["automatically"],
        # A process of the version before this one, during an upgrade, notes none.
        "disabled_cause": detail.get("disabled_cause"),
        "reason": detail["reason"],
        **_cause(queue),
    }
    since = queue.subscription.disabled_at or notice.since
    _publish_endpoint(NoticeKind.ENDPOINT_DISABLED, queue, sentence, {"since": since, "cause": cause})


def _publish_failed(queue: SubscriptionQueue, notice: Notice) -> None:
    detail = notice.detail
    cause = {"error": detail["error"] or None, "status_code": detail["status_code"]}
    deliveries = "1 delivery has" if notice.number == 1 else f"{notice.number} deliveries have"
    sentence = (
        f"{deliveries} failed for good since {_time(notice.since)} at the endpoint {_name(queue.subscription)} "
        f"({_words(cause)})."
    )
    delivery = {name: detail[name] for name in ("event_id", "event_type")} | {"id": detail["delivery_id"]}
    data = {"since": notice.since, "number": notice.number, "cause": cause, "last_delivery": delivery}
    _publish_endpoint(NoticeKind.DELIVERY_FAILED, queue, sentence, data)


def _tell_expiring(key_id: uuid.UUID) -> bool:
    key = ApiKey.objects.select_related("organization").get(pk=key_id)
    notice = _lock(key_id, NoticeKind.KEY_EXPIRING, key.organization_id)
    if notice.told_at is not None or key.expires_at is None:
        return False
    _mark_told(notice)
    sentence = (
        f"The API key {key.prefix}… expires on {_time(key.expires_at)}. Requests with it are refused from then on."
    )
    shown = {"id": str(key.id), "prefix": key.prefix, "name": key.name}
    content = {"message": sentence, "key": shown, "expires_at": notice_time(key.expires_at)}
    _publish_event(NoticeKind.KEY_EXPIRING, key.organization_id, {**content, "link": _link(f"/api/keys/{key.id}")})
    _tell_operator(NoticeKind.KEY_EXPIRING, key.organization, content, f"/orgs/apikey/{key.id}/change/")
    return True


# --- what is told ---------------------------------------------------------------------------------


def notice_time(at: datetime.datetime | None) -> str | None:
    """Return a time as the API's JSON has it."""
    return None if at is None else at.astimezone(datetime.UTC).isoformat().replace("+00:00", "Z")


def _time(at: datetime.datetime | None) -> str:
    return "" if at is None else f"{at.astimezone(datetime.UTC):%Y-%m-%d %H:%M} UTC"


def _name(subscription: Subscription) -> str:
    """Return a name for an endpoint: its host, because a path or a query may hold a token."""
    return subscription.host or subscription.url


def _cause(queue: SubscriptionQueue) -> dict[str, Any]:
    return {"error": queue.last_error or None, "status_code": queue.last_status_code}


def _words(cause: Mapping[str, Any]) -> str:
    status = f" {cause['status_code']}" if cause["status_code"] else ""
    return f"{cause['error'] or 'unknown'}{status}"


def _link(path: str) -> str:
    return f"{settings.PORTAL_URL}{full_path(path)}"


def _publish_endpoint(kind: NoticeKind, queue: SubscriptionQueue, sentence: str, data: Mapping[str, Any]) -> None:
    """Tell the organization and the operator of an endpoint.  data: what only this kind has."""
    subscription = queue.subscription
    waiting = sum(
        Delivery.objects.filter(subscription_id=subscription.pk, status=status)[:COUNT_WAITING_TO].count()
        for status in (DeliveryStatus.PENDING, DeliveryStatus.HELD)
    )
    times = {
        name: notice_time(value) if isinstance(value, datetime.datetime) else value for name, value in data.items()
    }
    content = {
        "message": sentence,
        **times,
        "waiting_deliveries": min(waiting, COUNT_WAITING_TO),
        "counted_up_to": COUNT_WAITING_TO,
    }
    shown = {"id": str(subscription.pk), "description": subscription.description, "uid": subscription.uid}
    if not subscription.is_operational:
        _publish_event(
            kind,
            subscription.organization_id,
            {
                **content,
                "subscription": {**shown, "url": subscription.url},
                "link": _link(f"/api/subscriptions/{subscription.pk}"),
            },
        )
    _tell_operator(
        kind,
        subscription.organization,
        {**content, "subscription": {**shown, "host": subscription.host}},
        f"/webhooks/subscription/{subscription.pk}/change/",
    )


def _publish_event(kind: NoticeKind, organization_id: uuid.UUID, data: Mapping[str, Any]) -> None:
    """Accept an operational event, if the organization has a subscription that may want it."""
    wanted = Subscription.objects.filter(organization_id=organization_id, is_operational=True, deleted_at=None)
    if wanted.exists():
        ingest(organization_id, NewEvent(f"{OPERATIONAL_PREFIX}{kind}", orjson.dumps(data).decode(), None))


def _tell_operator(kind: NoticeKind, organization: Organization, content: Mapping[str, Any], page: str) -> None:
    send_to_operator(
        {
            "type": f"{OPERATIONAL_PREFIX}{kind}",
            "timestamp": notice_time(timezone.now()),
            "data": {
                **content,
                "organization": {"id": str(organization.pk), "name": organization.name},
                "link": _link(f"/{settings.ADMIN_PATH}{page}"),
            },
        }
    )
