"""No statement of the hot paths reads more of a big table than it needs.

The paths run as they are; PostgreSQL's auto_explain tells the plan of each statement with the rows that it
really read.  So a new statement is checked without being named here.
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from django.db import connection
from django.db.models.functions import Now
from django.utils import timezone

from core.db import server_cursor
from core.ids import new_id
from devstack.sql import uuid7
from events import backlog, group_commit, ingest, pacing
from events.models import Event
from events.payload import NewEvent
from events.reprocessing import reprocess
from orgs import idempotency
from orgs.keys import authenticate, create_api_key
from orgs.models import Organization
from tests.webhooks.helpers import NOWHERE, fan_out, make_past_partitions, result, subscribe
from triggers_project.health import COUNT_TO
from webhooks import stats, subscriptions
from webhooks.destinations.inbox import fetching
from webhooks.destinations.outcome import Failure
from webhooks.dispatch import leases
from webhooks.dispatch.claim import claim
from webhooks.dispatch.delivery import ClaimedDelivery
from webhooks.dispatch.record import record_results
from webhooks.models import Delivery, Subscription, SubscriptionQueue
from webhooks.routing.fan_out import FanOut
from webhooks.upkeep import background_runs, held_retention, inbox_retention, queue_repair
from webhooks.upkeep.preview import preview, preview_recovery
from webhooks.upkeep.retention import purge_expired

BIG = {"events_event", "webhooks_delivery", "webhooks_deliveryattempt", "events_dedupkey", "orgs_idempotencykey"}
HISTORY = 10_000  # settled events, with two deliveries each
# A path here touches at most some hundreds of rows; walking a big table's history takes at least HISTORY.
MOST_ROWS = 2_500
PARKED = 5_000


@dataclass
class History:
    """Tables full of settled rows, with a little that is due, held, failed, leased or parked."""

    organization: Organization
    busy: Subscription
    due: Subscription
    plans: list[dict[str, Any]] = field(default_factory=list)


def _run(statement: str, *parameters: Any) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)


_EVENTS = f"""
INSERT INTO events_event
    (id, organization_id, type, data, dedup_id, status, failed_attempts, last_error, due_at, created_at, processed_at)
SELECT {uuid7("t - now()")}, %s, 'order.' || n %% 20, '{{"n": 1}}', 'd-' || n, 'processed', 0, '', t, t, t
FROM (SELECT n, now() - interval '20 days' + n * interval '20 days' / %s AS t FROM generate_series(1, %s) AS n) AS e
"""
_KEYS = """
INSERT INTO events_dedupkey (organization_id, dedup_id, event_id, fingerprint, expires_at)
SELECT organization_id, dedup_id, id, '\\x00', now() + interval '1 day' FROM events_event
ON CONFLICT DO NOTHING
"""
_IDEMPOTENCY_KEYS = """
INSERT INTO orgs_idempotencykey (organization_id, key, fingerprint, status, location, body, is_encrypted, expires_at)
SELECT %s, 'i-' || n, '\\x00', 202, '', '{}', false, now() + interval '1 day' FROM generate_series(1, %s) AS n
"""
_DELIVERIES = f"""
INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, next_attempt_at, cause,
    attempts_used, attempt_count, last_status_code, last_error, completed_at, created_at)
SELECT {uuid7("e.created_at - now()")}, e.organization_id, e.id, s, 'delivered', e.created_at, 'schedule', 1, 1,
    200, '', e.created_at, e.created_at FROM events_event e, unnest(%s::uuid[]) AS s
"""
_ATTEMPTS = """
INSERT INTO webhooks_deliveryattempt
    (delivery_id, number, cause, started_at, duration_ms, status_code, error, error_detail, response_body)
SELECT id, 1, 'schedule', created_at, 2, 200, '', '', 'ok' FROM webhooks_delivery ON CONFLICT DO NOTHING
"""
# Of the busy subscription: a hundred each that failed, are held, and wait for a retry in an hour.
_TROUBLED = """
UPDATE webhooks_delivery d SET status = v.status, next_attempt_at = now() + interval '1 hour',
    completed_at = CASE v.status WHEN 'failed' THEN now() END
FROM (
    SELECT id, (ARRAY['failed', 'held', 'pending'])[1 + row_number() OVER (ORDER BY created_at DESC) %% 3] AS status
    FROM webhooks_delivery WHERE subscription_id = %s ORDER BY created_at DESC LIMIT 300
) AS v WHERE d.id = v.id
"""
# In the queue that the claims read: what waits for a retry isn't looked at.
_PARKED = """
UPDATE webhooks_delivery SET status = 'pending', next_attempt_at = now() + interval '5 hours', completed_at = NULL
WHERE id IN (SELECT id FROM webhooks_delivery WHERE subscription_id = %s ORDER BY created_at DESC LIMIT %s)
"""


@pytest.fixture
def history(organization: Organization) -> Iterator[History]:
    make_past_partitions()
    busy = subscribe(organization, NOWHERE + "busy", event_types=["nothing"])
    due = subscribe(organization, NOWHERE + "due")
    _run(_EVENTS, organization.id, HISTORY, HISTORY)
    _run(_KEYS)
    _run(_DELIVERIES, [busy.id, due.id])
    _run(_ATTEMPTS)
    _run(_TROUBLED, busy.id)
    _run(_PARKED, due.id, PARKED)
    ingest.ingest_batch(organization.id, [NewEvent("order.1", "{}", None)] * 150)
    _run(
        "ANALYZE events_event, events_dedupkey, webhooks_delivery, webhooks_deliveryattempt, webhooks_subscriptionqueue"
    )
    found = History(organization, busy, due)
    with _explained(found):
        yield found


@contextlib.contextmanager
def _explained(found: History) -> Iterator[None]:
    """Add the plans of the statements inside to `found`."""

    def keep(diagnostic: Any) -> None:
        _, is_plan, text = (diagnostic.message_primary or "").partition("plan:\n")
        if is_plan:
            found.plans.append(json.loads(text))

    raw: Any = connection.connection
    _run("LOAD 'auto_explain'")
    for setting, value in (
        ("auto_explain.log_analyze", "on"),
        ("auto_explain.log_timing", "off"),
        ("auto_explain.log_format", "json"),
        ("auto_explain.log_min_duration", "0"),
        ("auto_explain.log_nested_statements", "on"),
        ("client_min_messages", "log"),
    ):
        _run(f"SET LOCAL {setting} = '{value}'")
    raw.add_notice_handler(keep)
    found.plans.clear()
    yield
    raw.remove_notice_handler(keep)


def _nodes(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield node
    for child in node.get("Plans", ()):
        yield from _nodes(child)


def _rows_read(node: dict[str, Any]) -> float:
    removed = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return float((node["Actual Rows"] + removed) * node["Actual Loops"])


def _big_tables() -> dict[str, str]:
    """Return the table that each relation with more than a few pages is, or is a partition of."""
    return _names(
        "SELECT c.relname, coalesce(parent.relname, c.relname) FROM pg_class c"
        " LEFT JOIN pg_inherits i ON i.inhrelid = c.oid LEFT JOIN pg_class parent ON parent.oid = i.inhparent"
        " WHERE coalesce(parent.relname, c.relname) = ANY (%s) AND c.relkind = 'r'"
        " AND pg_relation_size(c.oid) > 10 * 8192",
        sorted(BIG),
    )


def _index_names() -> dict[str, str]:
    """Return, for each index of a partition, the one of the table that it is part of."""
    return _names(
        "SELECT part.relname, whole.relname FROM pg_inherits i"
        " JOIN pg_class part ON part.oid = i.inhrelid JOIN pg_class whole ON whole.oid = i.inhparent"
        " WHERE part.relkind = 'i'"
    )


def _names(statement: str, *parameters: Any) -> dict[str, str]:
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return dict(cursor.fetchall())


def _faults(plans: list[dict[str, Any]]) -> list[str]:
    """Return what is wrong with the plans: big tables read in order, or by an index but from end to end."""
    found = []
    big = _big_tables()
    for plan in plans:
        for node in _nodes(plan["Plan"]):
            table = big.get(node.get("Relation Name", ""))
            if table is None or node["Node Type"] == "ModifyTable":
                continue
            rows = _rows_read(node)
            if rows > MOST_ROWS:
                found.append(f"{node['Node Type']} of {table}, {rows:.0f} rows: {plan['Query Text']}")
    return found


def _indexes(plans: list[dict[str, Any]]) -> set[str]:
    whole = _index_names()
    used = {node["Index Name"] for plan in plans for node in _nodes(plan["Plan"]) if "Index Name" in node}
    return {whole.get(name, name) for name in used}


@contextlib.contextmanager
def _checked(history: History, *indexes: str) -> Iterator[None]:
    """Check the statements that run inside.  indexes: those that must have been used."""
    _run("SELECT 1")  # a statement's plan is told when the next one begins
    history.plans.clear()
    yield
    _run("SELECT 1")
    plans = list(history.plans)
    assert len(plans) > 1, "auto_explain told nothing"
    faults = "\n".join(_faults(plans))
    assert not faults, faults
    assert set(indexes) <= _indexes(plans)


@pytest.mark.django_db
def test_the_check_itself_sees_a_sequential_scan_and_a_walk_along_an_index(history: History) -> None:
    Event.objects.filter(data="nothing like it").count()
    assert "Seq Scan" in _faults(list(history.plans))[0]
    history.plans.clear()
    _run("SET LOCAL enable_seqscan = off")
    list(Event.objects.filter(organization_id=history.organization.id, last_error="x").order_by("-created_at", "-id"))
    assert any("events_event" in fault and "rows" in fault for fault in _faults(list(history.plans)))


@pytest.mark.django_db
def test_accepting_an_event_or_a_batch_reads_no_history(history: History) -> None:
    caller = authenticate(create_api_key(history.organization)[1])
    assert caller is not None
    of_caller = {
        "organization_ids": [caller.organization_id], "key_ids": [caller.key_id], "distinct_key_ids": [caller.key_id],
        "rates": [caller.events_per_minute], "catalogs": [caller.catalog_version],
        "scope": "events:write", "types": ["order.1"], "data": ["{}"],
        "request_ids": [None], "traces": [None], "cloudevents": [None], "channels": [None], "ordering_keys": [None],
        "window": datetime.timedelta(hours=1),
    }  # fmt: skip
    with _checked(history):
        for number in range(8):  # often enough for a generic plan
            ingest.ingest(history.organization.id, NewEvent("order.1", "{}", None))
            ingest.ingest(history.organization.id, NewEvent("order.1", "{}", f"d-{number}"))
            for dedup_id in (None, f"for-{number}"):
                fingerprint = None if dedup_id is None else b"f" * 32
                with server_cursor() as cursor:
                    row = {"ids": [new_id()], "dedup_ids": [dedup_id], "fingerprints": [fingerprint]}
                    assert cursor.execute(group_commit.INSERT, {**of_caller, **row}).fetchall() == []
                    wanted = {"organization_ids": [caller.organization_id], "dedup_ids": [dedup_id]}
                    cursor.execute(group_commit._FIND_HOLDERS, wanted)
            # Few enough that a scan of all keys is never cheaper, however compact their table happens to be.
            batch = [NewEvent("order.1", "{}", f"d-{n}") for n in range(number, 20)]
            ingest.ingest_batch(history.organization.id, batch)
        backlog.waiting_events(1000)
        backlog.oldest_waiting_seconds()


@pytest.mark.django_db
def test_pacing_reads_an_event_of_each_organization_and_not_those_behind_it(history: History) -> None:
    _run(
        "UPDATE events_event SET status = 'accepted' WHERE id IN"
        " (SELECT id FROM events_event ORDER BY created_at DESC LIMIT %s)",
        PARKED,
    )
    _run("ANALYZE events_event")
    with _checked(history, "events_event_accepted"):
        for _ in range(7):
            assert [one.organization_id for one in pacing.oldest_events(pacing.NOBODY)] == [history.organization.id]


@pytest.mark.django_db
def test_fan_out_claim_and_record_read_what_is_due_and_nothing_else(history: History) -> None:
    with _checked(history, "events_event_accepted", "webhooks_delivery_pending"):
        fan_out()
        SubscriptionQueue.objects.update(concurrency_window=20)
        for status in (200, 500, 200, 404, 200, 200, 200):
            record_results([result(claimed, status) for claimed in claim(20).deliveries])


def _claim_four() -> list[ClaimedDelivery]:
    """Claim the four deliveries, whatever the endpoint has done."""
    SubscriptionQueue.objects.filter(is_fetched=False).update(
        concurrency_window=20, paused_until=None, next_due_at=Now()
    )
    claimed = claim(20).deliveries
    assert len(claimed) == 4
    return claimed


def _work(history: History, inbox: Subscription) -> None:
    """Accept a few events, send them to an endpoint in vain, with a lost worker, and well; fetch and settle them."""
    events = [NewEvent("order.1", "{}", f"d-{new_id()}") for _ in range(4)]
    for _ in range(2):  # the second time they are duplicates
        ingest.ingest_batch(history.organization.id, events)
    with server_cursor() as cursor:
        dedup_ids = [event.dedup_id for event in events]
        owners = [history.organization.id] * 4
        cursor.execute(group_commit._FIND_HOLDERS, {"organization_ids": owners, "dedup_ids": dedup_ids})
        requests = [idempotency.Once(history.organization.id, f"k-{new_id()}", b"f", new_id(), "s") for _ in range(4)]
        cursor.execute(idempotency.PEEK, idempotency.peek_parameters(requests))
        kept = idempotency.Kept(202, "", b"{}")
        cursor.execute(idempotency.KEEP, idempotency.keep_parameters([(once, kept) for once in requests]))
        found = cursor.execute(idempotency.FIND, idempotency.find_parameters(requests)).fetchall()
        assert len(found) == 4
    fan_out()
    record_results([result(claimed, 500) for claimed in _claim_four()])
    _claim_four()
    Delivery.objects.filter(status="delivering").update(lease_expires_at=Now() - datetime.timedelta(seconds=1))
    assert leases.expire() == 4
    record_results([result(claimed, 200) for claimed in _claim_four()])
    lease_id, [first, *others] = fetching.fetch(inbox.id, 4, 30)
    fetching.extend(inbox.id, [first.delivery_id], 60, lease_id)
    fetching.give_back(inbox.id, [first.delivery_id], 0, lease_id)
    fetching.acknowledge(inbox.id, [one.delivery_id for one in others])


@pytest.mark.django_db
@pytest.mark.parametrize("rounds", [0, 1, 5])
def test_a_plan_from_when_there_was_hardly_anything_reads_no_more_of_full_tables(
    organization: Organization, settings: Any, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    """It is kept until PostgreSQL analyzes the tables again, which on a new installation may take a minute."""
    settings.DELIVERY_RETRY_SCHEDULE = (0.0, 0.0, 0.0)
    settings.DELIVERY_RETRY_JITTER = 0.0
    _run(f"TRUNCATE {', '.join(sorted(BIG))}")
    due = subscribe(organization)
    inbox, _ = subscriptions.create(organization.id, inbox="orders", event_types=["*"])
    found = History(organization, due, due)
    for _ in range(rounds):
        _work(found, inbox)
    _run(f"ANALYZE {', '.join(sorted(BIG))}, webhooks_subscriptionqueue")
    monkeypatch.setattr(connection.connection, "prepare_threshold", 0)  # plans are kept from the next use on
    _work(found, inbox)
    _run(_EVENTS, organization.id, HISTORY, HISTORY)
    _run(_KEYS)
    _run(_IDEMPOTENCY_KEYS, organization.id, HISTORY)
    _run(_DELIVERIES, [due.id, inbox.id])
    _run(_ATTEMPTS)
    with _explained(found), _checked(found):
        _work(found, inbox)


@pytest.mark.django_db
def test_fan_out_reads_no_events_of_an_organization_that_it_skips(
    history: History, other_organization: Organization
) -> None:
    ingest.ingest(other_organization.id, NewEvent("order.1", "{}", None))
    _run(
        "UPDATE events_event SET status = 'accepted' WHERE organization_id = %s AND id IN"
        " (SELECT id FROM events_event ORDER BY created_at DESC LIMIT %s)",
        history.organization.id,
        PARKED,
    )
    _run("ANALYZE events_event")
    with _checked(history, "events_event_accepted"):
        assert FanOut().run_round(1000, skip=[history.organization.id]).seen == 1


@pytest.mark.django_db
def test_a_claim_from_a_backlog_that_fills_the_table_reads_what_it_takes(history: History) -> None:
    _run("UPDATE webhooks_delivery SET status = 'pending', next_attempt_at = now() - interval '1 hour'")
    _run("ANALYZE webhooks_delivery")
    SubscriptionQueue.objects.update(concurrency_window=20, next_due_at=Now())
    with _checked(history, "webhooks_delivery_pending"):
        for _ in range(7):
            record_results([result(claimed, 200) for claimed in claim(40).deliveries])


@pytest.mark.django_db
def test_leases_that_end_are_found_by_their_index(history: History) -> None:
    fan_out()
    SubscriptionQueue.objects.update(concurrency_window=20)
    for _ in range(5):
        claimed = claim(20).deliveries
        with _checked(history, "webhooks_delivery_leased"):
            leases.expire()
            leases.release({one.lease_id for one in claimed})
            record_results([result(one, None, Failure.TIMEOUT) for one in claimed])


@pytest.mark.django_db
def test_the_figures_of_the_health_page_count_what_waits(history: History) -> None:
    fan_out()
    with _checked(history):
        for _ in range(7):
            assert stats.waiting_deliveries(COUNT_TO)[0] == 150
            stats.retrying_deliveries(COUNT_TO)
            stats.deliveries_in_flight()
            stats.events_in_fan_out()
            stats.oldest_due_seconds()


PAGES = [
    "/api/events",
    "/api/events?type=order.3",
    "/api/events?type=nothing",
    "/api/events?status=processed",
    "/api/events?status=accepted",
    "/api/events?status=error",
    "/api/events?undelivered=true",
    "/api/events?since=2020-01-01T00:00:00Z",
    "/api/events?until=2020-01-01T00:00:00Z",
    "/api/deliveries",
    "/api/deliveries?status=failed",
    "/api/deliveries?status=held",
    "/api/deliveries?status=pending",
    "/api/deliveries?status=retrying",
    "/api/deliveries?status=delivered",
    "/api/deliveries?status=delivering",
    "/api/deliveries?status=cancelled",
    "/api/deliveries?subscription={due}",
    "/api/deliveries?subscription={busy}&status=held",
    "/api/deliveries?event={event}",
    "/api/deliveries/{delivery}",
    "/api/events/{event}",
]


@pytest.mark.django_db
def test_a_page_of_a_list_reads_about_a_page(history: History, api: Any) -> None:
    some = Delivery.objects.filter(subscription=history.due).earliest("created_at")
    names = {"due": history.due.id, "busy": history.busy.id, "event": some.event_id, "delivery": some.id}
    for page in PAGES:
        path = page.format(**names)
        try:
            with _checked(history):
                answer = api.get(path)
                assert answer.status_code == 200, answer.content
                following = answer.json().get("next_cursor")
                if following:
                    assert api.get(f"{path}{'&' if '?' in path else '?'}cursor={following}").status_code == 200
        except AssertionError as error:
            error.add_note(page)
            raise


@pytest.mark.django_db
@pytest.mark.parametrize("status", ["pending", "held", "failed", "cancelled"])
def test_deliveries_of_a_state_that_are_all_old_are_listed_without_walking_the_newer(
    history: History, api: Any, status: str
) -> None:
    _run("UPDATE webhooks_delivery SET status = 'delivered' WHERE status <> 'delivered'")
    # So many that the planner expects to meet one soon, from wherever it starts.
    _run(
        "UPDATE webhooks_delivery SET status = %s WHERE id IN"
        " (SELECT id FROM webhooks_delivery ORDER BY created_at LIMIT %s)",
        status,
        PARKED,
    )
    _run("ANALYZE webhooks_delivery")
    path = f"/api/deliveries?status={status}&limit=100"
    with _checked(history, "webhooks_delivery_by_status"):
        first = api.get(path).json()
        second = api.get(f"{path}&cursor={first['next_cursor']}").json()
    listed = first["data"] + second["data"]
    assert [one["status"] for one in listed] == [status] * 200
    assert [one["created_at"] for one in listed] == sorted((one["created_at"] for one in listed), reverse=True)


@pytest.mark.django_db
def test_what_consumers_have_fetched_is_listed_without_walking_the_history(history: History, api: Any) -> None:
    inbox, _ = subscriptions.create(history.organization.id, inbox="orders", event_types=["*"])
    _run("UPDATE webhooks_delivery SET subscription_id = %s WHERE subscription_id = %s", inbox.id, history.due.id)
    _run(
        "UPDATE webhooks_delivery SET status = 'pending', lease_id = gen_random_uuid(),"
        " next_attempt_at = now() + interval '1 hour' WHERE id IN"
        " (SELECT id FROM webhooks_delivery ORDER BY created_at LIMIT 100)"
    )
    _run("ANALYZE webhooks_delivery")
    with _checked(history):
        listed = api.get("/api/deliveries?status=delivering&limit=200").json()["data"]
    assert [one["status"] for one in listed] == ["delivering"] * 100


@pytest.mark.django_db
def test_a_fetch_of_some_types_finds_them_behind_any_number_of_others(history: History) -> None:
    inbox, _ = subscriptions.create(history.organization.id, inbox="orders", event_types=["*"])
    _run(
        "UPDATE webhooks_delivery d SET subscription_id = %s, status = 'pending', completed_at = NULL,"
        " next_attempt_at = d.created_at, inbox_type = CASE WHEN number <= 5 THEN 'user.created' ELSE type END,"
        " lease_id = CASE WHEN number %% 2 = 0 THEN gen_random_uuid() END"
        " FROM (SELECT id, type, row_number() OVER (ORDER BY created_at DESC) AS number FROM events_event"
        " WHERE status = 'processed') AS e"
        " WHERE d.event_id = e.id AND d.subscription_id = %s",
        inbox.id,
        history.due.id,
    )
    _run("ANALYZE webhooks_delivery")
    indexes = ("webhooks_delivery_type_again", "webhooks_delivery_type_fresh")
    for wanted, limit, expected in (("user.created", 3, 3), ("user.*", 3, 2), ("order.*", 10, 10), ("none.*", 10, 0)):
        with _checked(history, *indexes):
            _, events = fetching.fetch(inbox.id, limit, 30, wanted)
        assert len(events) == expected


@pytest.mark.django_db
def test_looking_after_things_walks_no_history(history: History, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webhooks.upkeep.preview.COUNT_TO", 1000)
    fan_out()
    rounds: list[Callable[[], object]] = [
        purge_expired,
        queue_repair.repair_next_due_at,
        queue_repair.recount_in_flight,
        held_retention.cancel_expired,
        inbox_retention.cancel_unfetched,
        lambda: preview({"org": history.organization.id}),
        lambda: preview({"subscription": history.busy.pk}),
        lambda: preview_recovery(history.due, timezone.now() - datetime.timedelta(hours=1)),
        lambda: background_runs.advance_all(0.1),
        lambda: subscriptions.resync(history.busy.pk),
        lambda: reprocess(Event.objects.filter(status="error", organization_id=history.organization.id)),
    ]
    for work in rounds:
        with _checked(history) if work is not rounds[-1] else contextlib.nullcontext():
            work()


@pytest.mark.django_db
def test_the_indexes_of_the_claim_hold_what_waits_and_not_the_history(history: History) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT whole.relname, sum(part.reltuples) FROM pg_class whole"
            " JOIN pg_inherits i ON i.inhparent = whole.oid JOIN pg_class part ON part.oid = i.inhrelid"
            " WHERE whole.relname = ANY(%s) GROUP BY whole.relname",
            [["events_event_accepted", "webhooks_delivery_pending", "webhooks_delivery_leased"]],
        )
        sizes = dict(cursor.fetchall())
    assert len(sizes) == 3
    assert max(sizes.values()) < 2 * PARKED  # ANALYZE counts a sample
