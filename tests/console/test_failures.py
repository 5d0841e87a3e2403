"""The home says which deliveries failed and why, of one organization if that is chosen, and sends them again."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from orgs.models import Organization
from tests.console.rows import list_url, make_event, said
from tests.console.test_runs import fill
from tests.webhooks.helpers import subscribe
from webhooks.models import BulkRun, Delivery

HOME = reverse("admin:index")


@pytest.fixture
def failed(organization: Organization, other_organization: Organization) -> None:
    """Make failures of several causes and ages, of two organizations."""
    mine, theirs = subscribe(organization), subscribe(other_organization)
    fill(mine, 5, "failed", "timeout")
    fill(mine, 3, "failed", "http_status")
    fill(mine, 4, "pending", "connection_refused")
    fill(mine, 2, "failed", "dns_failed")
    fill(mine, 9, "delivered", "")
    fill(theirs, 7, "failed", "timeout")
    rows = Delivery.objects
    for owner in (organization, other_organization):  # the lists show the events
        rows.filter(organization=owner).update(event=make_event(owner))
    rows.filter(last_error="http_status").update(last_status_code=503)
    rows.filter(last_error="dns_failed").update(completed_at=timezone.now() - datetime.timedelta(hours=3))


def groups(client: Client, **query: object) -> list[tuple[str, ...]]:
    """Return the rows of the table: state, cause, number."""
    page = client.get(HOME, query).content.decode().partition("by cause</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", page)
    return [tuple(re.sub(r"<[^>]+>", "", cell) for cell in row) for row in rows]


def retry(client: Client, cause: str, **words: str) -> Any:
    """Press the button of a cause on the home of the organization."""
    page = client.get(HOME, {"organization": Organization.objects.get(name="Acme").pk}).content.decode()
    (row,) = [row for row in re.findall(r"<tr>.*?</tr>", page, re.S) if cause in row and "Retry…" in row]
    path = re.search(r'action="([^"]+)"', row)[1].replace("&amp;", "&")  # type: ignore[index]
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', row))
    fields.pop("csrfmiddlewaretoken", None)
    return client.post(path, fields | words, follow=True)


def test_the_home_counts_failed_deliveries_by_cause_in_its_time_and_organization(
    failed: None, organization: Organization, viewer: Client
) -> None:
    assert groups(viewer, organization=organization.pk) == [
        ("failed", "no response in time", "5"),
        ("retrying", "connection refused", "4"),
        ("failed", "HTTP 503", "3"),
    ]
    assert ("failed", "host name not found", "2") in groups(viewer, organization=organization.pk, span="6h")
    assert ("failed", "no response in time", "12") in groups(viewer)
    assert "Retry…" not in viewer.get(HOME).content.decode()


def test_a_group_s_list_has_just_its_deliveries(failed: None, organization: Organization, viewer: Client) -> None:
    page = viewer.get(HOME, {"organization": organization.pk}).content.decode()
    section = page.partition("by cause</h2>")[2].partition("</table>")[0]
    lists = [url.replace("&amp;", "&") for url in re.findall(r'<td><a href="([^"]+)"', section)]
    found = [{row.last_error for row in viewer.get(url).context["cl"].result_list} for url in lists]
    assert found == [{"timeout"}, {"connection_refused"}, {"http_status"}]
    assert [len(viewer.get(url).context["cl"].result_list) for url in lists] == [5, 4, 3]
    assert "cause: <b>HTTP 503" in viewer.get(lists[2]).content.decode()


@pytest.mark.parametrize("outcome", ["x'y", "timeout 99999", "timeout 1é", "\x00", "timeout -1"])
def test_a_cause_that_can_t_be_finds_nothing(failed: None, viewer: Client, outcome: str) -> None:
    for status in ({}, {"status": "retrying"}, {"status": "failed-1h"}):
        answer = viewer.get(list_url(Delivery, outcome=outcome, **status), follow=True)
        assert answer.status_code == 200
        assert not list(answer.context["cl"].result_list)


def test_a_cause_is_retried_with_one_button_and_one_confirmation(
    failed: None, organization: Organization, operator: Client
) -> None:
    asked = retry(operator, "no response in time").content.decode()
    assert "Retry 5 deliveries?" in asked
    assert "Delivered already" not in asked, "these failed"
    confirmed = {"confirmed": "1", "seen_at": timezone.now().isoformat()}
    assert "Retry: 5 queued." in said(retry(operator, "no response in time", **confirmed))
    queued = Delivery.objects.filter(status="pending", cause="manual")
    assert {(row.organization_id, row.last_error) for row in queued} == {(organization.pk, "timeout")}
    assert queued.count() == 5
    assert BulkRun.objects.get().filters["outcome"] == "timeout"
    assert "Retry: 4 queued." in said(retry(operator, "connection refused", **confirmed))


def test_the_home_s_links_keep_the_organization_and_the_time(
    failed: None, organization: Organization, viewer: Client
) -> None:
    page = viewer.get(HOME, {"organization": organization.pk, "span": "6h"}).content.decode().replace("&amp;", "&")
    links = page.partition('class="shortcuts"')[2].partition("</nav>")[0]
    assert f'{list_url(Delivery, organization=organization.pk, status="failed-6h")}"' in links
    for path in re.findall(r'href="([^"]+)"', links):
        if any(name in path for name in ("/event/", "/delivery/", "/subscription/", "/bulkrun/")):
            answer = viewer.get(path)
            assert answer.status_code == 200, path
            assert answer.context["cl"].params["organization"] == str(organization.pk), path
    listed = viewer.get(list_url(Delivery, organization=organization.pk, status="failed-6h"))
    assert len(listed.context["cl"].result_list) == 10


def test_every_time_range_of_the_home_is_one_of_the_lists(db: None, viewer: Client) -> None:
    from console.time_ranges import FAILED_SINCE, SPANS
    from webhooks.display.series import SPANS as RANGES

    for name, span in RANGES.items():
        assert SPANS[name][1].total_seconds() == span.minutes * 60
        assert viewer.get(list_url(Delivery, status=f"failed-{name}", created=name)).status_code == 200
        assert f"failed-{name}" in FAILED_SINCE
