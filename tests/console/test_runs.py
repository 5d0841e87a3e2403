"""Retrying, replaying and recovering many deliveries: previewed in true numbers, confirmed, run to the end, bounded."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from events.models import ERASED, Event
from orgs.models import AuditEntry, Organization
from tests.console.conftest import Staff
from tests.console.rows import World, act, ask, list_url, make_delivery, make_event, page_url, said
from tests.webhooks.helpers import in_threads, subscribe
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, Subscription, SubscriptionQueue
from webhooks.upkeep import background_runs
from webhooks.upkeep.preview import COUNT_TO

pytestmark = pytest.mark.django_db


def fill(subscription: Subscription, count: int, status: str = "failed", error: str = "timeout") -> None:
    """Make many deliveries."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO webhooks_delivery (id, organization_id, event_id, subscription_id, status, cause,"
            " attempts_used, attempt_count, last_error, created_at, completed_at)"
            " SELECT gen_random_uuid(), %s, gen_random_uuid(), %s, %s, 'schedule', 8, 8, %s,"
            " clock_timestamp() - make_interval(secs => n), CASE %s WHEN 'failed' THEN clock_timestamp() END"
            " FROM generate_series(1, %s) AS n",
            [subscription.organization_id, subscription.pk, status, error, status, count],
        )


def text_of(response: Any) -> str:
    """Return what a person reads on a page."""
    content = response.content.decode().partition('<div id="content"')[2]
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", content))


def finish_runs() -> None:
    """Let workers move on with what is under way, as the sweep does."""
    while BulkRun.objects.filter(state="running", in_background=True).exists():
        background_runs.advance_all(1.0)


def test_the_preview_tells_causes_and_what_will_happen_in_numbers(operator: Client, organization: Organization) -> None:
    up, down, asked, off = (subscribe(organization, f"http://127.0.0.1:9/{n}") for n in ("up", "down", "asked", "off"))
    limited = subscribe(organization, "http://127.0.0.1:9/limited", deliveries_per_second=1.0)
    for row, count in ((up, 5), (down, 7), (asked, 3), (off, 2), (limited, 4)):
        fill(row, count)
    fill(up, 6, "pending", "connection_refused")
    fill(up, 9, "pending", "")
    fill(up, 8, "delivered", "")
    until = timezone.now() + datetime.timedelta(minutes=5)
    SubscriptionQueue.objects.filter(pk=down.pk).update(breaker_trips=3, paused_until=until)
    SubscriptionQueue.objects.filter(pk=asked.pk).update(paused_until=until)
    subscriptions.disable(off)
    some = Delivery.objects.filter(status="failed")[:1]
    page = text_of(ask(operator, "retry", list(some), every=True, query={"organization": organization.pk}))
    assert "Retry 27 deliveries?" in page
    assert "27 deliveries would be queued: one more attempt of each." in page
    assert "failed no response in time 21" in page
    assert "retrying connection refused 6" in page
    at = until.strftime("%Y-%m-%d %H:%M:%S")
    assert f"7 wait behind a circuit breaker not before {at} http://127.0.0.1:9/down" in page
    assert "7 wait behind a circuit breaker, which lets one request at a time through" in page
    assert f"The next one is sent at {at}." in page
    assert f"3 wait, because the endpoint asked for a pause not before {at}" in page
    assert "2 held until the subscription is enabled" in page
    assert "2 are for disabled subscriptions and will be held" in page
    assert "4 due at once, sent as the rate limit allows" in page
    assert "11 due at once - http://127.0.0.1:9/up" in page
    assert "Delivered already, and left alone unless you say so: 8 more." in page
    assert not BulkRun.objects.exists()
    assert not AuditEntry.objects.filter(action="delivery.retry").exists()
    # Confirmed, it does just that.
    answer = act(operator, "retry", list(some), every=True, query={"organization": organization.pk})
    assert "Retry: 27 queued, 2 of them held, because their subscriptions are disabled." in said(answer)
    assert Delivery.objects.filter(status="pending", cause="manual").count() == 25
    assert (Delivery.objects.filter(status="held").count(), Delivery.objects.filter(status="delivered").count()) == (
        2,
        8,
    )
    assert SubscriptionQueue.objects.get(pk=down.pk).paused_until == until, "a run doesn't probe an endpoint"
    entry = AuditEntry.objects.get(action="delivery.retry")
    assert (entry.detail["count"], entry.detail["count_is_more"]) == (27, False)
    assert entry.detail["filters"] == {"org": str(organization.pk)}
    assert entry.organization_id == organization.pk


def test_more_than_can_be_counted_stays_bounded_and_is_run_by_workers_to_its_end(
    world: World, operator: Client, viewer: Client
) -> None:
    fill(world.subscription, COUNT_TO + 600)
    failed = world.deliveries["failed"]
    query = {"subscription": world.subscription.pk, "status": "failed"}
    page = text_of(ask(operator, "replay", [failed], every=True, query=query))
    assert "more than 10,000 deliveries would be queued" in page
    assert "The numbers below are of the first 10,000." in page
    answer = act(operator, "replay", [failed], every=True, query=query)
    run = BulkRun.objects.exclude(pk=world.run.pk).get()
    assert answer.redirect_chain[-1][0] == page_url(run)
    assert "Replay of more than 10,000 deliveries has begun." in said(answer)
    assert answer["Refresh"] == "3"
    assert (run.state, run.visited, run.total) == ("running", 0, None)
    background_runs.advance(run)
    run.refresh_from_db()
    assert (run.state, run.visited, run.queued) == ("running", 500, 500)
    assert "500 deliveries seen" in text_of(viewer.get(page_url(run)))
    BulkRun.objects.filter(pk=world.run.pk).update(state="done")
    finish_runs()
    run.refresh_from_db()
    assert (run.state, run.queued) == ("done", COUNT_TO + 601)
    assert "10,601 queued" in text_of(viewer.get(page_url(run)))
    assert "Refresh" not in viewer.get(page_url(run))
    assert AuditEntry.objects.filter(action="delivery.replay").count() == 1
    assert AuditEntry.objects.get(action="delivery.replay").target_name == world.subscription.url
    for row in (run, world.subscription):
        assert "delivery.replay" in text_of(viewer.get(page_url(row, "history"), follow=True))


def test_what_was_erased_is_left_alone_and_said_so_before_and_afterward(world: World, operator: Client) -> None:
    Event.objects.filter(pk=world.deliveries["failed"].event_id).update(data=ERASED)
    rows = [world.deliveries["failed"], make_delivery(make_event(world.organization), world.subscription, "failed")]
    asked = text_of(ask(operator, "retry", rows))
    assert "1 selected is of an event whose payload was erased and will be left alone." in asked
    assert "Left alone: 1 of an event whose payload was erased." in said(act(operator, "retry", rows))
    world.deliveries["failed"].refresh_from_db()
    assert world.deliveries["failed"].status == "failed"


def test_a_run_can_be_cancelled_and_what_it_did_stays(world: World, operator: Client, viewer: Client) -> None:
    fill(world.subscription, 1200)
    act(operator, "retry_failed", [world.subscription])
    run = BulkRun.objects.exclude(pk=world.run.pk).get()
    assert (run.state, run.total) == ("running", 1201)
    background_runs.advance(run)
    assert "500 of 1,201 deliveries seen" in text_of(operator.get(page_url(run)))
    act(viewer, "cancel", [run])
    run.refresh_from_db()
    assert run.state == "running"
    assert "1 bulk run cancelled" in said(act(operator, "cancel", [run]))
    background_runs.advance(run)
    run.refresh_from_db()
    assert (run.state, run.queued) == ("cancelled", 500)
    assert Delivery.objects.filter(status="failed").count() == 701
    assert AuditEntry.objects.get(action="run.cancel").detail == {"kind": "retry", "queued": 500}


def test_delivered_ones_are_sent_again_only_with_the_words_typed(world: World, operator: Client) -> None:
    delivered = world.deliveries["delivered"]
    page = ask(operator, "replay", [delivered])
    assert 'name="again"' in page.content.decode()
    for typed in ("", "yes", "send"):
        act(operator, "replay", [delivered], again=typed)
        delivered.refresh_from_db()
        assert delivered.status == "delivered"
    assert "Type “send again”, or nothing." in text_of(act(operator, "replay", [delivered], again="yes"))
    assert "Replay: 1 queued." in said(act(operator, "replay", [delivered], again="send again"))
    delivered.refresh_from_db()
    assert delivered.status == "pending"


def test_a_list_s_filter_by_delivered_takes_nothing_by_itself(world: World, operator: Client) -> None:
    query = {"status": "delivered", "organization": world.organization.pk}
    answer = act(operator, "replay", [world.deliveries["delivered"]], every=True, query=query)
    assert "Nothing was queued." in said(answer)
    assert not Delivery.objects.filter(cause="replay").exists()
    act(operator, "replay", [world.deliveries["delivered"]], every=True, query=query, again="send again")
    assert Delivery.objects.filter(cause="replay").count() == 1


@pytest.mark.parametrize("query", [{"q": "x"}, {"event": "x"}, {"status": "nothing"}, {"created": "2h"}])
def test_all_that_match_a_filter_that_a_run_can_t_use_is_refused(
    world: World, operator: Client, query: dict[str, str]
) -> None:
    act(operator, "replay", [world.deliveries["failed"]], every=True, query=query)
    assert BulkRun.objects.count() == 1
    assert Delivery.objects.get(pk=world.deliveries["failed"].pk).status == "failed"


def test_a_span_of_time_chooses_the_same_rows_as_the_list(world: World, operator: Client) -> None:
    old = make_delivery(make_event(world.organization), world.subscription, "failed")
    Delivery.objects.filter(pk=old.pk).update(created_at=timezone.now() - datetime.timedelta(hours=2))
    act(operator, "replay", [world.deliveries["failed"]], every=True, query={"created": "1h", "status": "failed"})
    assert Delivery.objects.get(pk=old.pk).status == "failed"
    assert Delivery.objects.get(pk=world.deliveries["failed"].pk).status == "pending"


def test_a_second_operator_gets_the_first_one_s_run(world: World, staff: Staff) -> None:
    fill(world.subscription, 600)
    first, second = staff("operator"), staff("owner")
    query = {"created": "1h", "status": "failed", "organization": world.organization.pk}
    looked_at = timezone.now().isoformat()
    act(first, "retry", [world.deliveries["failed"]], every=True, query=query)
    run = BulkRun.objects.get(kind="retry")
    answer = act(second, "retry", [world.deliveries["failed"]], every=True, query=query, seen_at=looked_at)
    assert answer.redirect_chain[-1][0] == page_url(run)
    assert "user:operator-1 asked for the same at " in said(answer)
    BulkRun.objects.exclude(pk=run.pk).update(state="done")
    finish_runs()
    # Confirmed late, from a preview that is older than the run: still that run, though it has ended.
    Delivery.objects.filter(status="pending").update(status="failed")
    act(second, "retry", [world.deliveries["failed"]], every=True, query=query, seen_at=looked_at)
    assert BulkRun.objects.get(kind="retry") == run
    assert AuditEntry.objects.filter(action="delivery.retry").count() == 1
    # Asked anew, after a look at what is there now, it is a new run.
    act(second, "retry", [world.deliveries["failed"]], every=True, query=query)
    assert BulkRun.objects.filter(kind="retry").count() == 2


@pytest.mark.django_db(transaction=True)
def test_two_who_press_at_the_same_moment_begin_one_run(world: World, staff: Staff) -> None:
    fill(world.subscription, 600)
    clients = [staff("operator"), staff("owner")]
    answers = in_threads(2, lambda number: act(clients[number], "retry_failed", [world.subscription]))
    run = BulkRun.objects.get(kind="retry")
    assert {answer.redirect_chain[-1][0] for answer in answers} == {page_url(run)}
    # By what is on the pages: Django's test client mixes up the contexts of pages that are rendered at the same time.
    assert sum(b"asked for the same" in answer.content for answer in answers) == 1
    assert AuditEntry.objects.filter(action="delivery.retry").count() == 1


def test_a_viewer_sees_runs_and_begins_none(world: World, viewer: Client) -> None:
    for action, row in (("retry", world.deliveries["failed"]), ("replay", world.event),
                        ("retry_failed", world.subscription), ("recover", world.subscription)):  # fmt: skip
        for do in (ask, act):
            answer = do(viewer, action, [row], since="2026-01-01T00:00:00Z", shown="2026-01-01T00:00:00+00:00")
            assert answer.status_code == 403
    assert BulkRun.objects.get() == world.run
    assert viewer.get(page_url(world.run)).status_code == 200
    assert viewer.get(list_url(BulkRun)).status_code == 200


def test_deliveries_of_several_organizations_are_one_entry_in_the_log_of_each(
    world: World, operator: Client, other_organization: Organization
) -> None:
    theirs = make_delivery(make_event(other_organization), subscribe(other_organization), "failed")
    mine = [world.deliveries["failed"], make_delivery(make_event(world.organization), world.subscription, "failed")]
    act(operator, "retry", [*mine, theirs])
    entries = AuditEntry.objects.filter(action="delivery.retry")
    assert {entry.organization_id for entry in entries} == {world.organization.pk, other_organization.pk}
    run = BulkRun.objects.get(kind="retry")
    by_owner = {entry.organization_id: entry for entry in entries}
    told = by_owner[world.organization.pk]
    assert (told.detail["count"], told.target_name) == (2, "2 deliveries")
    assert set(told.targets) == {str(run.pk), *(str(row.pk) for row in mine)}, "its own, and no other's"
    told = by_owner[other_organization.pk]
    assert (told.detail["count"], told.target, told.target_name) == (1, str(theirs.pk), "one delivery")
    assert set(told.targets) == {str(run.pk), str(theirs.pk)}
    history = operator.get(page_url(theirs, "history"), follow=True)
    assert len(history.context["cl"].result_list) >= 1
