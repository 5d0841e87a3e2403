"""OpenTelemetry: one POST is one trace, over the fan-out to each attempt; and nothing of it without the setting."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from core import tracing
from devstack.http_receiver import Receiver, Response
from devstack.processes import ROOT
from events.models import Event
from orgs.models import Organization
from tests.api.helpers import have_the_first_attempt_deadlock
from tests.api.test_idempotency import EVENT, once
from tests.conftest import ApiClient
from tests.webhooks.helpers import fan_out, sending, subscribe
from webhooks import subscriptions

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.fixture
def collector(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Receiver]:
    """Return what takes the spans of this process."""
    with Receiver() as running:
        settings.OTEL_EXPORTER_OTLP_ENDPOINT = running.url("/")
        monkeypatch.setattr(tracing, "_provider", None)
        yield running
        tracing.provider().shutdown()


def spans(collector: Receiver) -> list[Span]:
    """Return the spans that were exported, in the order in which they began."""
    tracing.provider().force_flush()
    received = [ExportTraceServiceRequest.FromString(request.body) for request in collector.requests]
    assert {request.path for request in collector.requests} == {"/v1/traces"}
    found = [
        span
        for request in received
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    return sorted(found, key=lambda span: span.start_time_unix_nano)


def attributes(span: Span) -> dict[str, Any]:
    """Return a span's attributes."""
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


def deliver() -> None:
    """Fan out what was accepted, and send what is due."""
    fan_out()
    with sending() as sender:
        sender.wait_until_drained(30)


@pytest.mark.django_db(transaction=True)
def test_one_post_is_one_trace_from_the_producer_to_the_endpoint(
    organization: Organization, api: ApiClient, collector: Receiver
) -> None:
    with Receiver() as good, Receiver(lambda request, number: Response(503)) as bad:
        for receiver in (good, bad):
            subscribe(organization, receiver.url("/hook"))
        answer = api.post("/api/events", {"type": "a", "data": 1}, traceparent=PARENT, tracestate="vendor=1")
        deliver()
        post, fanned_out, *attempts = spans(collector)
        assert [post.name, fanned_out.name, *(attempt.name for attempt in attempts)] == [
            "POST /api/events", "fan-out", "attempt", "attempt",
        ]  # fmt: skip
        assert {span.trace_id.hex() for span in (post, fanned_out, *attempts)} == {PARENT[3:35]}
        assert post.parent_span_id.hex() == PARENT[36:52]
        assert {span.parent_span_id for span in (fanned_out, *attempts)} == {post.span_id}
        event_id = answer.json()["id"]
        assert {attributes(span)["triggers.event_id"] for span in (fanned_out, *attempts)} == {event_id}
        by_status = {attributes(attempt)["http.response.status_code"]: attempt for attempt in attempts}
        assert by_status[503].status.message == "http_status"
        assert by_status[200].status.message == ""
        assert good.requests[0].headers["traceparent"] == f"{PARENT[:36]}{by_status[200].span_id.hex()}-01"
        assert bad.requests[0].headers["traceparent"] == f"{PARENT[:36]}{by_status[503].span_id.hex()}-01"
        assert good.requests[0].headers["tracestate"] == "vendor=1"


@pytest.mark.django_db(transaction=True)
def test_a_batch_without_a_trace_begins_one_and_what_is_not_sampled_is_not_exported(
    organization: Organization, api: ApiClient, collector: Receiver
) -> None:
    with Receiver() as receiver:
        subscribe(organization, receiver.url("/hook"))
        api.post("/api/events/batch", [{"type": "a", "data": number} for number in range(2)])
        api.post("/api/events", {"type": "a", "data": 3}, traceparent=f"{PARENT[:-2]}00")
        deliver()
        found = spans(collector)
        assert sorted(span.name for span in found) == ["POST /api/events/batch", *["attempt"] * 2, *["fan-out"] * 2]
        assert len({span.trace_id for span in found}) == 1
        assert sorted(request.headers["traceparent"][-2:] for request in receiver.requests) == ["00", "01", "01"]


def test_what_is_sent_once_and_fetched_is_one_trace_whatever_is_tried_or_asked_again(
    organization: Organization, api: ApiClient, collector: Receiver, door: int | None
) -> None:
    subscriptions.create(organization.id, inbox="default", event_types=["*"])
    if door is None:  # the front door makes its spans when everything is committed
        have_the_first_attempt_deadlock()
    first, again = (once(api, "/api/events", EVENT) for _ in range(2))
    assert first.json() == again.json()
    fan_out()
    [fetched] = api.get("/api/inbox").json()["events"]
    api.post("/api/inbox/ack", {"event_ids": [fetched["id"]]})
    post, fanned_out, fetch = spans(collector)
    assert [post.name, fanned_out.name, fetch.name] == ["POST /api/events", "fan-out", "fetch"]
    assert {span.trace_id for span in (fanned_out, fetch)} == {post.trace_id}
    assert {span.parent_span_id for span in (fanned_out, fetch)} == {post.span_id}
    assert attributes(fetch)["triggers.delivery_id"] == fetched["delivery_id"]


@pytest.mark.django_db(transaction=True)
def test_a_collector_that_is_away_delays_nothing(
    organization: Organization, api: ApiClient, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    settings.OTEL_EXPORTER_OTLP_ENDPOINT = "http://127.0.0.1:9"
    monkeypatch.setattr(tracing, "_provider", None)
    with Receiver() as receiver:
        subscribe(organization, receiver.url("/hook"))
        assert api.post("/api/events", {"type": "a", "data": 1}).status_code == 202
        deliver()
        assert len(receiver.requests) == 1
    tracing.provider().shutdown()
    assert Event.objects.get().status == "processed"


def test_without_the_setting_the_exporter_is_not_even_loaded() -> None:
    program = (
        "import sys, triggers_project.asgi, triggers_project.worker\n"
        "from triggers_project.start_checks import require_packages\n"
        "require_packages()\n"
        "sys.exit(any(name.startswith('opentelemetry.exporter') for name in sys.modules))\n"
    )
    env = {**os.environ, "DJANGO_SETTINGS_MODULE": "triggers_project.settings"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_process_without_the_packages_ends_with_the_line_that_names_them() -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry.sdk.trace'] = None\n"
        "import django; django.setup()\n"
        "from core.tracing import require_packages\n"
        "require_packages()\n"
    )
    env = {
        **os.environ, "DJANGO_SETTINGS_MODULE": "triggers_project.settings",
        "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=env, capture_output=True, text=True, check=False
    )
    assert re.search(r"OTEL_EXPORTER_OTLP_ENDPOINT needs the packages of requirements-otel\.txt", done.stderr)
