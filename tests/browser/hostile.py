"""Markup that would run, load or send something if a page took it for its own, in every column that takes text."""

from __future__ import annotations

import datetime
from typing import Any

from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.auth.models import Group, User
from django.contrib.contenttypes.models import ContentType
from django.db.models import Model
from django.utils import timezone
from django_rq import get_queue
from rq.job import JobStatus
from rq.registry import DeferredJobRegistry, FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.worker import Worker

from core.wakeups import EVENTS
from events.models import EventStatus, EventType
from orgs.keys import create_api_key
from orgs.models import ApiKey, AuditEntry, Organization
from portal.models import PortalSession
from tests.console.rows import make_attempt, make_delivery, make_event
from webhooks import subscriptions
from webhooks.models import BulkRun, Delivery, DisabledCause, Rollup, Subscription, SubscriptionQueue
from webhooks.rollups import NO_ID

# `{c}` is the address that must get no request.  What has no script bears the class `hostile`.
PAYLOADS = (
    "<script>window.canary=1;fetch('{c}')</script>",
    "<img class=hostile src=x onerror=\"fetch('{c}')\">",
    '"><svg class=hostile onload="fetch(\'{c}\')">',
    "'><img class=hostile src='{c}'>",
    "</script><script>fetch('{c}')</script>",
    "</pre></textarea></title></style><img class=hostile src='{c}'>",
    "<iframe class=hostile srcdoc='<script>parent.canary=1</script>'></iframe>",
    "<iframe class=hostile src='{c}'></iframe>",
    "<link class=hostile rel=stylesheet href='{c}'>",
    "<style class=hostile>@import '{c}';</style>",
    "<object class=hostile data='{c}'></object>",
    "<embed class=hostile src='{c}'>",
    "<details class=hostile open ontoggle=\"fetch('{c}')\">x</details>",
    "<input class=hostile autofocus onfocus=\"fetch('{c}')\">",
    '" class="hostile" autofocus onfocus="fetch(\'{c}\')',
    "' class='hostile' autofocus onfocus='alert(1)",
    "<svg class=hostile onload=alert(1)>",
    "<video class=hostile><source onerror=\"fetch('{c}')\" src=x></video>",
    "<svg class=hostile><animate onbegin=\"fetch('{c}')\" attributeName=x dur=1s>",
    "<!--><img class=hostile src='{c}'>-->",
    "<b class=hostile>",
    "<img class=hostile srcset='{c}'>",
    "<form class=hostile action='{c}'><button>Go</button></form>",
    "<base class=hostile href='{c}/'>",
    "<meta class=hostile http-equiv=refresh content='0;url={c}'>",
    "<a class=hostile href=\"javascript:fetch('{c}')\">x</a>",
    "javascript:fetch('{c}')//",
    "&lt;img class=hostile src='{c}'&gt;",
    "\\u003cimg class=hostile src='{c}'\\u003e",
)


class Source:
    """Gives payloads out by turns, so that over a few columns and rows each stands in each kind of place."""

    def __init__(self, canary: str, turn: int) -> None:
        self._payloads = [payload.replace("{c}", canary) for payload in PAYLOADS]
        self._next = turn

    def text(self, most: int, before: str = "") -> str:
        """Return `before` and as many whole payloads as fit into `most` characters, at least one."""
        taken = before
        for _ in self._payloads:
            payload = self._payloads[self._next % len(self._payloads)]
            if len(taken) + len(payload) > most:
                if taken != before:
                    return taken
            else:
                taken += payload
            self._next += 1
        assert taken != before, f"no payload is as short as {most}"
        return taken

    def everything(self) -> str:
        """Return the whole corpus."""
        return "\n".join(self._payloads)


def make_hostile_rows(canary: str, turn: int) -> list[Model]:
    """Make a row of each model whose every text is hostile; return those that have a page."""
    source = Source(canary, turn)
    # Few payloads are short.  In a turn of their own they don't stop the others' turns.
    short = Source(canary, turn)
    whole = source.everything()
    organization = Organization.objects.create(name=source.text(200, f"{turn}"))
    key = create_api_key(organization, name=source.text(200))[0]
    ApiKey.objects.filter(pk=key.pk).update(prefix=f"{turn}<b class=hostile>")
    subscription = subscriptions.create(organization.pk, url="http://127.0.0.1:9/", event_types=["*"])[0]
    Subscription.objects.filter(pk=subscription.pk).update(
        url=source.text(2048, "javascript:fetch('{c}')//".replace("{c}", canary)),
        description=source.text(500),
        event_types=[source.text(257), source.text(257)],
        header_names=[source.text(100), source.text(100)],
        signature_header=source.text(100),
        auth_type=short.text(30),
        client_certificate_details={
            "subject": source.text(300),
            "issuer": source.text(300),
            "fingerprint_sha256": source.text(64),
            "not_before": "2026-01-01T00:00:00+00:00",
            "expires_at": "2026-01-01T00:00:00+00:00",
        },
        secret_details=[{"type": source.text(200), "public_key": source.text(200)}],
        disabled_cause=DisabledCause.values[turn % len(DisabledCause.values)],
        disabled_reason=source.text(500),
        is_active=turn % 2 == 0,
        disabled_at=timezone.now(),
    )
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(
        failing_since=timezone.now(),
        next_due_at=timezone.now(),
        accepts_deliveries=turn % 2 == 0,
        last_error=short.text(30),
        last_status_code=500,
    )
    event = make_event(
        organization, type=source.text(255), data=whole, dedup_id=source.text(255), status=EventStatus.ERROR,
        last_error=whole,
    )  # fmt: skip
    delivery = make_delivery(event, subscription, "failed")
    Delivery.objects.filter(pk=delivery.pk).update(last_error=short.text(30), attempt_count=1)
    attempt = make_attempt(
        delivery, error=short.text(30), error_detail=source.text(500), response_body=whole,
    )  # fmt: skip
    for step in (1, 10, 60):  # nobody can send such an outcome, and still no page takes it for its own
        for owner, of in ((organization.pk, subscription.pk), (organization.pk, NO_ID), (NO_ID, NO_ID)):
            Rollup.objects.get_or_create(
                step=step, organization_id=owner, subscription_id=of, outcome=short.text(40, f"{turn}"),
                at=timezone.now().replace(second=0, microsecond=0, minute=0) - datetime.timedelta(hours=step // 60),
                defaults={"attempts": 7, "durations": [7] + [0] * 17, "latencies": [0] * 18},
            )  # fmt: skip
    run = BulkRun.objects.create(
        kind="replay",
        subscription=subscription,
        organization_id=organization.pk,
        filters={source.text(200): whole},
        actor=source.text(200, "user:"),
        total=5,
        visited=2,
    )
    user = User.objects.create(
        username=source.text(150, f"{turn}"), first_name=source.text(150), last_name=source.text(150),
        email=source.text(254), is_staff=True,
    )  # fmt: skip
    group = Group.objects.create(name=source.text(150, f"{turn}"))
    entry = AuditEntry.objects.create(
        organization=organization, actor=source.text(200, "user:"), action=short.text(60), target=source.text(200),
        detail={source.text(200): [whole]}, address=short.text(64), request_id=source.text(128),
        target_name=source.text(300), reason=source.text(500),
    )  # fmt: skip
    event_type = EventType.objects.create(
        organization=organization, name=source.text(255, f"{turn}"), description=source.text(500), schema=whole,
        examples=whole,
    )  # fmt: skip
    session = PortalSession.objects.create(
        organization=organization, key=key, name=source.text(100), link_hash=key.pk.bytes * 2,
        link_expires_at=timezone.now() + datetime.timedelta(hours=1), session_seconds=60,
    )  # fmt: skip
    return [organization, key, subscription, event_type, event, delivery, attempt, run, user, group, entry, session]


def make_log_entries(user: User, row: Model, canary: str) -> None:
    """Write hostile words into what Django's admin remembers of a user and a row."""
    for turn in range(0, len(PAYLOADS), 3):
        source = Source(canary, turn)
        LogEntry.objects.create(
            user=user, content_type=ContentType.objects.get_for_model(row), object_id=row.pk, action_flag=CHANGE,
            object_repr=source.text(200), change_message=source.text(500),
        )  # fmt: skip


def make_hostile_jobs(canary: str) -> list[Any]:
    """Put jobs with hostile words where RQ's pages show them, and a worker; return the jobs."""
    queue = get_queue(EVENTS)
    jobs = []
    for turn, status in enumerate(
        (JobStatus.QUEUED, JobStatus.FAILED, JobStatus.DEFERRED, JobStatus.SCHEDULED, JobStatus.STARTED)
    ):
        source = Source(canary, turn * 5)
        job = queue.job_class.create(
            source.text(500), args=(source.text(500),), kwargs={source.text(200): source.everything()},
            description=source.text(500), connection=queue.connection, serializer=queue.serializer, origin=queue.name,
            meta={source.text(200): source.everything()}, status=status,
        )  # fmt: skip
        job.enqueued_at = datetime.datetime.now(datetime.UTC)
        job.save()
        if status == JobStatus.QUEUED:
            queue.push_job_id(job.id)
        elif status == JobStatus.FAILED:
            FailedJobRegistry(queue=queue).add(job, ttl=3600, exc_string=source.everything())
        elif status == JobStatus.DEFERRED:
            DeferredJobRegistry(queue=queue).add(job)
        elif status == JobStatus.SCHEDULED:
            ScheduledJobRegistry(queue=queue).schedule(
                job, datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
            )
        else:
            queue.connection.zadd(StartedJobRegistry(queue=queue).key, {f"{job.id}:1": 2**33})
        jobs.append(job)
    worker = Worker([queue], name="<b class=hostile>", connection=queue.connection, serializer=queue.serializer)
    worker.register_birth()
    return jobs
