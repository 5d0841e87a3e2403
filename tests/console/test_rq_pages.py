"""django-rq's pages: for staff who may see deliveries, their buttons for those who may repair, nothing inline."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import Client
from django.urls import get_resolver, reverse
from django_rq import get_queue

from core.wakeups import EVENTS, WEBHOOKS, wake
from tests.console.conftest import Staff

INLINE = re.compile(
    r"<script(?![^>]*\bsrc=)[^>]*>(?!\s*</script>)|\son[a-z]+=\"|\sstyle=\"|javascript:|<style", re.IGNORECASE
)
# The routes' names, and what they need beside the queue's number.
PAGES = {
    "home": (), "home_json": (), "jobs": (0,), "queue_details": (0,), "finished_jobs": (0,), "failed_jobs": (0,),
    "scheduled_jobs": (0,), "started_jobs": (0,), "deferred_jobs": (0,), "workers": (0,), "job_detail": (0, "job"),
    "scheduler_jobs": (0,),
}  # fmt: skip
CHANGES = {
    "delete_failed_jobs": (0,), "clear": (0,), "requeue_all": (0,), "delete_job": (0, "job"), "requeue_job": (0, "job"),
    "enqueue_job": (0, "job"), "stop_job": (0, "job"), "confirm_action": (0,), "actions": (0,),
}  # fmt: skip
NEEDS_ROWS_OF_OTHERS = {"result_detail", "worker_details", "cron_scheduler_detail", "cron_job_detail"}


@pytest.fixture
def job() -> Any:
    """Return a waiting wake-up."""
    assert wake(EVENTS)
    return get_queue(EVENTS).jobs[0]


def url(name: str, arguments: tuple[Any, ...], job: Any) -> str:
    """Return the path of a page."""
    return reverse(f"django_rq:{name}", args=[job.id if part == "job" else part for part in arguments])


def test_every_route_of_the_library_is_known_here() -> None:
    names = {key for key in get_resolver().namespace_dict["django_rq"][1].reverse_dict if isinstance(key, str)}
    assert names == set(PAGES) | set(CHANGES) | NEEDS_ROWS_OF_OTHERS


def test_pages_open_for_each_group_and_for_nobody_else(job: Any, staff: Staff) -> None:
    clients = {name: staff(name) for name in ("viewer", "operator", "owner")}
    outsider = staff("nobody")
    for name, arguments in PAGES.items():
        path = url(name, arguments, job)
        for client in clients.values():
            answer = client.get(path)
            assert answer.status_code == (404 if name == "scheduler_jobs" else 200), name
            if name != "home_json":
                assert not INLINE.search(answer.content.decode()), (name, INLINE.search(answer.content.decode()))
            assert "script-src 'self'" in answer["Content-Security-Policy"]
        assert outsider.get(path).status_code == 403
        assert Client().get(path).status_code == 302


def test_what_changes_needs_the_permission_to_repair(job: Any, staff: Staff) -> None:
    viewer = staff("viewer")
    for name, arguments in CHANGES.items():
        for method in (viewer.get, viewer.post):
            assert method(url(name, arguments, job), {"post": "yes"}).status_code == 403, name
    for name, arguments in PAGES.items():
        assert viewer.post(url(name, arguments, job)).status_code == 403
    assert get_queue(EVENTS).count == 1
    assert Client().post(url("clear", (0,), job), {"post": "yes"}).status_code == 302
    assert get_queue(EVENTS).count == 1


def test_each_checkbox_of_a_list_has_a_name(job: Any, operator: Client) -> None:
    boxes = re.findall('<input[^>]*type="checkbox"[^>]*>', operator.get(url("jobs", (0,), job)).content.decode())
    assert len(boxes) == 2  # for all jobs, and for the one
    assert all("aria-label=" in box for box in boxes), boxes


def test_pages_that_ask_again_have_nothing_inline(job: Any, operator: Client) -> None:
    for name in ("clear", "requeue_all", "delete_failed_jobs", "delete_job", "requeue_job"):
        page = operator.get(url(name, CHANGES[name], job)).content.decode()
        assert not INLINE.search(page), (name, INLINE.search(page))


def test_an_operator_empties_a_queue_and_deletes_a_job(job: Any, operator: Client) -> None:
    assert operator.get(url("clear", (0,), job)).status_code == 200
    assert operator.post(url("delete_job", (0, "job"), job), {"post": "yes"}).status_code == 302
    assert get_queue(EVENTS).count == 0
    wake(EVENTS)
    wake(WEBHOOKS)
    assert operator.post(url("clear", (0,), job), {"post": "yes"}).status_code == 302
    assert get_queue(EVENTS).count == 0
    assert get_queue(WEBHOOKS).count == 1


def test_garbage_is_no_error(job: Any, operator: Client, staff: Staff) -> None:
    client = staff("superuser")
    base = reverse("django_rq:home")
    for path in (
        "queues/99/", "queues/0/nothing/", "queues/0/%00/", "workers/0/nothing/", "workers/99/", "nothing/",
        "queues/0/failed/?page=x", "queues/0/?page=-1", "queues/0/nothing/delete/", "queues/0/?page=99999999999",
        f"queues/0/{job.id}/results/nothing/", "cron-schedulers/0/x/", "schedulers/9/", "queues/0/%E2%80%AE/",
    ):  # fmt: skip
        answer = client.get(base + path)
        assert answer.status_code in {200, 302, 404}, path
    for name in ("actions", "confirm_action"):
        for body in (
            {},
            {"action": "x"},
            {"action": "delete", "job_ids": ["nothing"], "_selected_action": ["nothing"]},
        ):
            assert operator.post(url(name, (0,), job), body).status_code in {200, 302, 400, 404}, (name, body)
