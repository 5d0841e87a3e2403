"""Organizations and the operator are told of endpoints and keys: once, in time, and never in circles."""

from __future__ import annotations

import datetime
import json
import re
import socket
import threading
from collections.abc import Iterator
from email import message_from_bytes, policy
from typing import Any

import pytest
from django.db import connection
from django.db.models import F
from django.db.models.functions import Now
from django.urls import reverse
from standardwebhooks import Webhook

from devstack.http_receiver import Receiver, Response
from devstack.waiting import wait_until
from events.models import Event
from orgs.keys import create_api_key
from orgs.models import ApiKey, Organization
from tests.conftest import ApiClient
from tests.webhooks.helpers import (
    accept,
    database_time,
    fan_out,
    in_threads,
    queue_of,
    result,
    sending,
    statuses,
    subscribe,
)
from tests.webhooks.transactions import another_transaction, wait_until_held_up
from webhooks import subscriptions
from webhooks.destinations.http.signing import new_secret
from webhooks.destinations.outcome import Failure
from webhooks.dispatch.claim import claim
from webhooks.dispatch.leases import MAX_WORKERS_LOST, expire
from webhooks.dispatch.record import record_results
from webhooks.models import (
    Delivery,
    DeliveryAttempt,
    DisabledCause,
    Notice,
    NoticeKind,
    OperatorMessage,
    Subscription,
    SubscriptionQueue,
)
from webhooks.notices import EVENT_TYPES
from webhooks.upkeep import notifications, operator_messages
from webhooks.upkeep.notifications import tell, tell_of_keys
from webhooks.upkeep.sweep import Sweep

HOUR = datetime.timedelta(hours=1)
SECRET = new_secret()


def watch(organization: Organization, url: str = "http://127.0.0.1:9/ops", **options: Any) -> Subscription:
    """Return an operational subscription to everything."""
    return subscribe(organization, url, is_operational=True, **options)


def told() -> list[str]:
    """Return the types of the operational events so far, in their order."""
    return list(Event.objects.filter(type__in=EVENT_TYPES).order_by("created_at", "id").values_list("type", flat=True))


def last() -> Any:
    """Return the data of the last operational event."""
    return json.loads(Event.objects.filter(type__in=EVENT_TYPES).latest("created_at").data)


def fail(subscription: Subscription, *, longer_than: float = 600, status: int = 500) -> None:
    """Let the subscription's endpoint fail, since some seconds."""
    SubscriptionQueue.objects.filter(pk=subscription.pk).update(paused_until=None, next_due_at=Now())
    Delivery.objects.filter(subscription=subscription, status="pending").update(next_attempt_at=Now())
    for claimed in claim(10).deliveries:
        record_results([result(claimed, status if claimed.subscription_id == subscription.pk else 200)])
    SubscriptionQueue.objects.filter(pk=subscription.pk, failing_since__isnull=False).update(
        failing_since=Now() - datetime.timedelta(seconds=longer_than)
    )


def succeed(subscription: Subscription) -> None:
    fail(subscription, status=200)
    assert queue_of(subscription).failing_since is None


def an_interval_later() -> None:
    """Let the last notifications be an hour ago."""
    Notice.objects.update(told_at=F("told_at") - HOUR)


@pytest.mark.django_db
def test_an_endpoint_that_fails_and_recovers_is_told_once_each(organization: Organization) -> None:
    watch(organization)
    broken = subscribe(organization, "https://broken.example/hook?token=s3cret", description="Orders", uid="o-1")
    accept(organization, 3)
    fail(broken, longer_than=60)
    assert (tell(), told()) == (0, [])  # not yet: it may have been a deployment
    fail(broken)
    assert (tell(), tell()) == (1, 0)
    assert told() == ["triggers.endpoint.failing"]
    data = last()
    assert data["subscription"] == {
        "id": str(broken.pk), "description": "Orders", "uid": "o-1", "url": "https://broken.example/hook?token=s3cret"
    }  # fmt: skip
    assert (data["cause"], data["waiting_deliveries"]) == ({"error": "http_status", "status_code": 500}, 3)
    assert "broken.example has been failing since" in data["message"]
    assert "s3cret" not in data["message"]
    assert data["link"] == f"/api/subscriptions/{broken.pk}"
    since = datetime.datetime.fromisoformat(data["since"])
    assert since < queue_of(broken).last_failure_at - datetime.timedelta(minutes=9)
    fail(broken)
    an_interval_later()
    assert tell() == 0  # it is still the same failure
    succeed(broken)
    assert (tell(), tell()) == (1, 0)
    assert told() == ["triggers.endpoint.failing", "triggers.endpoint.recovered"]
    assert last()["since"] == data["since"]
    assert last()["recovered_at"] > data["since"]


@pytest.mark.django_db
def test_an_endpoint_that_comes_and_goes_is_told_once_an_hour(organization: Organization) -> None:
    watch(organization)
    flapping = subscribe(organization, event_types=["order.*"])
    for _ in range(4):
        accept(organization, 1)
        fail(flapping)
        tell()
        succeed(flapping)
        tell()
    assert told() == ["triggers.endpoint.failing", "triggers.endpoint.recovered"]
    accept(organization, 1)
    fail(flapping)
    an_interval_later()
    assert tell() == 1
    assert told()[2:] == ["triggers.endpoint.failing"]
    # That it works again is told once an hour, too, whenever that it fails was told.
    Notice.objects.filter(kind="endpoint.recovered").update(told_at=Now())
    succeed(flapping)
    assert tell() == 0
    an_interval_later()
    assert tell() == 1
    assert told()[3:] == ["triggers.endpoint.recovered"]


@pytest.mark.django_db
def test_an_endpoint_whose_failures_are_forgotten_has_not_recovered(organization: Organization) -> None:
    watch(organization)
    broken = subscribe(organization)
    accept(organization, 1)
    fail(broken)
    assert tell() == 1
    subscriptions.change(broken, {"url": "http://127.0.0.1:9/elsewhere"})
    assert queue_of(broken).failing_since is None
    assert (tell(), told()) == (0, ["triggers.endpoint.failing"])


@pytest.mark.django_db
def test_deliveries_that_fail_within_an_hour_are_told_together(organization: Organization, settings: Any) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0,)
    settings.BREAKER_THRESHOLD = 0
    watch(organization)
    broken = subscribe(organization)
    accept(organization, 1)
    fail(broken, longer_than=1)
    assert (tell(), tell()) == (1, 0)
    assert (told(), last()["number"]) == (["triggers.delivery.failed"], 1)
    failed = Delivery.objects.get(status="failed")
    assert last()["last_delivery"] == {
        "id": str(failed.pk), "event_id": str(failed.event_id), "event_type": "order.created"
    }  # fmt: skip
    for _ in range(3):
        accept(organization, 1)
        fail(broken, longer_than=1)
    assert (tell(), len(told())) == (0, 1)
    an_interval_later()
    assert (tell(), tell()) == (1, 0)
    assert last()["number"] == 3
    assert Notice.objects.filter(kind=NoticeKind.DELIVERY_FAILED).count() == 1


@pytest.mark.django_db
def test_a_delivery_that_loses_all_its_workers_is_told(organization: Organization) -> None:
    watch(organization)
    subscribe(organization)
    accept(organization)
    (claimed,) = claim(10).deliveries
    DeliveryAttempt.objects.bulk_create(
        DeliveryAttempt(
            delivery_id=claimed.delivery_id, number=number, cause="schedule", started_at=claimed.event_created_at,
            duration_ms=0, error=Failure.WORKER_LOST,
        )
        for number in range(1, MAX_WORKERS_LOST)
    )  # fmt: skip
    Delivery.objects.update(attempt_count=MAX_WORKERS_LOST - 1, lease_expires_at=Now() - HOUR)
    assert expire() == 1
    assert Delivery.objects.filter(status="failed").count() == 1
    assert (tell(), told()) == (1, ["triggers.delivery.failed"])
    assert last()["cause"] == {"error": "worker_lost", "status_code": None}


@pytest.mark.django_db
@pytest.mark.parametrize("how", ["gone", "by request", "several"])
def test_a_disabled_subscription_is_told_with_the_reason(organization: Organization, how: str) -> None:
    watch(organization)
    broken = subscribe(organization)
    accept(organization, 2)
    if how == "gone":
        fail(broken, status=410)
    elif how == "by request":
        subscriptions.disable(broken, "moving")
        subscriptions.disable(broken, "again")  # changes nothing
    else:
        subscriptions.disable_many([broken.pk], DisabledCause.WITH_HOST, "It is down.", audit=lambda rows: None)
    assert (tell(), tell(), told()) == (1, 0, ["triggers.endpoint.disabled"])
    cause = last()["cause"]
    assert cause["automatically"] is (how == "gone")
    row = Subscription.objects.get(pk=broken.pk)
    assert (cause["disabled_cause"], cause["reason"]) == (row.disabled_cause, row.disabled_reason)
    assert last()["waiting_deliveries"] == 2


@pytest.mark.django_db
def test_all_that_is_told_of_a_disabled_subscription_is_of_the_same_time(organization: Organization) -> None:
    watch(organization)
    broken = subscribe(organization)
    subscriptions.disable(broken, "moving")
    # As if it had been enabled and disabled again before this is told.
    Subscription.objects.filter(pk=broken.pk).update(disabled_cause=DisabledCause.GONE, disabled_reason="It is gone.")
    assert tell() == 1
    cause = last()["cause"]
    told_of = cause["automatically"], cause["disabled_cause"], cause["reason"]
    assert told_of == (False, "by_request", "Disabled by request: moving")


@pytest.mark.django_db
def test_a_notice_of_the_version_before_is_told_without_a_cause(organization: Organization) -> None:
    watch(organization)
    broken = subscribe(organization)
    subscriptions.disable(broken, "moving")
    Notice.objects.update(detail={"automatically": False, "reason": "Disabled by request: moving"})
    assert tell() == 1
    assert (last()["cause"]["disabled_cause"], last()["cause"]["reason"]) == (None, "Disabled by request: moving")


@pytest.mark.django_db
def test_what_is_over_before_it_may_be_told_is_not_told(organization: Organization) -> None:
    watch(organization)
    one = subscribe(organization)
    subscriptions.disable(one)
    subscriptions.enable(one)
    other = subscribe(organization)
    subscriptions.disable(other)
    subscriptions.delete(other)
    assert (tell(), told()) == (0, [])
    assert not Notice.objects.filter(since__isnull=False).exists()
    assert not Notice.objects.filter(subject_id=other.pk).exists()


@pytest.mark.django_db
def test_nothing_goes_in_circles(organization: Organization, settings: Any) -> None:
    """An operational subscription whose endpoint is dead makes no operational event, for itself or for another one."""
    settings.DELIVERY_RETRY_SCHEDULE = (0,)
    settings.BREAKER_THRESHOLD = 0
    settings.OPERATOR_EMAILS = ["ops@example.com"]
    dead = watch(organization)
    watch(organization, "http://127.0.0.1:9/second")
    broken = subscribe(organization)
    accept(organization, 1)
    fail(broken)
    for _ in range(5):
        tell()
        fan_out()
        fail(dead)
        an_interval_later()
    assert sorted(told()) == ["triggers.delivery.failed", "triggers.endpoint.failing"]
    assert Delivery.objects.filter(subscription=dead, status="failed").count() == 2
    subscriptions.disable(dead)
    tell()
    assert len(told()) == 2
    # The operator is told of it all the same.
    of_dead = OperatorMessage.objects.filter(content__data__subscription__id=str(dead.pk))
    assert set(of_dead.values_list("content__type", flat=True)) == {
        "triggers.endpoint.failing", "triggers.endpoint.disabled"
    }  # fmt: skip


@pytest.mark.django_db
def test_each_kind_of_subscription_gets_its_own_events_only(
    organization: Organization, other_organization: Organization
) -> None:
    operational, ordinary = watch(organization), subscribe(organization)
    watch(other_organization)
    accept(organization, 1)
    subscriptions.disable(subscribe(organization, event_types=["nothing"]))
    tell()
    fan_out()
    found = Delivery.objects.order_by("created_at").values_list("subscription_id", "event__type")
    assert list(found) == [(ordinary.pk, "order.created"), (operational.pk, "triggers.endpoint.disabled")]


@pytest.mark.django_db
def test_no_event_is_stored_that_nobody_could_get(organization: Organization) -> None:
    subscriptions.disable(subscribe(organization))
    assert (tell(), Event.objects.count()) == (1, 0)


@pytest.mark.django_db
def test_a_key_that_expires_is_told_once(organization: Organization, monkeypatch: pytest.MonkeyPatch) -> None:
    watch(organization)
    now = datetime.datetime.now(datetime.UTC)
    soon, later, revoked, over = (create_api_key(organization, name=name)[0] for name in ("soon", "b", "c", "d"))
    ApiKey.objects.filter(pk=soon.pk).update(expires_at=now + datetime.timedelta(days=6))
    ApiKey.objects.filter(pk=later.pk).update(expires_at=now + datetime.timedelta(days=8))
    ApiKey.objects.filter(pk=revoked.pk).update(expires_at=now + HOUR, revoked_at=now)
    ApiKey.objects.filter(pk=over.pk).update(expires_at=now - HOUR)
    assert (tell_of_keys(), tell_of_keys(), told()) == (1, 0, ["triggers.key.expiring"])
    assert last()["key"] == {"id": str(soon.pk), "prefix": soon.prefix, "name": "soon"}
    assert last()["link"] == f"/api/keys/{soon.pk}"
    an_interval_later()
    assert (tell_of_keys(), tell()) == (0, 0)
    # Those that were told don't use up a round's number.
    monkeypatch.setattr(notifications, "TOLD_AT_A_TIME", 1)
    ApiKey.objects.filter(pk=later.pk).update(expires_at=now + datetime.timedelta(days=6, hours=1))
    assert tell_of_keys() == 1


@pytest.mark.django_db(transaction=True)
def test_a_key_of_which_another_worker_has_told_meanwhile_is_not_told_again(organization: Organization) -> None:
    watch(organization)
    key = create_api_key(organization)[0]
    ApiKey.objects.filter(pk=key.pk).update(expires_at=Now() + HOUR)
    with another_transaction() as other:
        other.execute(
            "INSERT INTO webhooks_notice (subject_id, kind, organization_id, told_at) VALUES (%s, %s, %s, now())",
            (key.pk, NoticeKind.KEY_EXPIRING.value, organization.pk),
        )

        def work(number: int) -> int | None:
            if number == 0:
                return tell_of_keys()
            wait_until_held_up(other)
            other.commit()
            return None

        counts = [count for count in in_threads(2, work) if count is not None]
    assert (counts, told()) == ([0], [])


@pytest.mark.django_db
def test_neither_a_success_nor_a_failure_that_is_tried_again_writes_a_notice(organization: Organization) -> None:
    subscribe(organization)
    accept(organization, 4)
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE webhooks_notice RENAME TO not_to_be_touched")
    first, *others = claim(10).deliveries
    record_results([result(first, 500), *(result(one) for one in others)])
    assert statuses() == ["delivered"] * 3 + ["pending"]


@pytest.mark.django_db(transaction=True)
def test_two_that_tell_at_once_tell_once(organization: Organization) -> None:
    watch(organization)
    broken = subscribe(organization)
    accept(organization)
    fail(broken)
    subscriptions.disable(subscribe(organization))
    assert sum(in_threads(4, lambda _: tell())) == 2
    assert sorted(told()) == ["triggers.endpoint.disabled", "triggers.endpoint.failing"]


@pytest.mark.django_db
def test_what_cannot_be_told_is_told_later_and_holds_back_nothing(organization: Organization) -> None:
    watch(organization)
    subscriptions.disable(subscribe(organization))
    poisoned = subscribe(organization)
    subscriptions.disable(poisoned)
    Notice.objects.filter(subject_id=poisoned.pk).update(detail={})  # of another version
    assert tell() == 1
    assert Notice.objects.filter(subject_id=poisoned.pk, since__isnull=False, told_at=None).exists()


# --- the API ----------------------------------------------------------------------------------------


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["triggers.endpoint.failing", "triggers.anything"])
def test_nobody_can_send_an_operational_event(api: ApiClient, kind: str) -> None:
    answer = api.post("/api/events", {"type": kind, "data": {}})
    assert answer.status_code == 400
    assert answer.json()["errors"] == [
        {"pointer": "/type", "detail": "must not begin with triggers., which is for operational events"}
    ]
    assert api.post("/api/events/batch", {"events": [{"type": kind, "data": {}}]}).status_code != 202
    assert Event.objects.count() == 0


@pytest.mark.django_db
def test_an_operational_subscription_is_made_over_the_api(api: ApiClient) -> None:
    given = {"url": "https://ops.example/hook", "operational": True, "event_types": ["triggers.endpoint.*"]}
    answer = api.post("/api/subscriptions", given)
    assert (answer.status_code, answer.json()["operational"]) == (201, True)
    path = f"/api/subscriptions/{answer.json()['id']}"
    assert api.get(path).json()["operational"] is True
    assert api.patch(path, {"event_types": ["*"]}).status_code == 200
    assert api.patch(path, {"event_types": ["order.*"]}).json()["errors"][0]["pointer"] == "/event_types/0"
    assert api.patch(path, {"operational": False}).status_code == 400
    ordinary = {"url": "https://a.example/", "event_types": ["*", "triggers.endpoint.failing"]}
    (error,) = api.post("/api/subscriptions", ordinary).json()["errors"]
    assert (error["pointer"], "`operational`" in error["detail"]) == ("/event_types/1", True)
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"]}).json()
    assert made["operational"] is False


# --- the operator -----------------------------------------------------------------------------------


@pytest.fixture
def operator(receiver: Receiver, settings: Any) -> Receiver:
    """Return a receiver that OPERATOR_WEBHOOK_URL names."""
    settings.OPERATOR_WEBHOOK_URL = receiver.url("/operator")
    settings.OPERATOR_WEBHOOK_SECRET = SECRET
    settings.PORTAL_URL = "https://hooks.example.com"
    return receiver


@pytest.mark.django_db(transaction=True)
def test_what_the_operators_webhook_refuses_is_sent_again_later(
    organization: Organization, operator: Receiver, settings: Any
) -> None:
    operator.behavior = lambda request, number: Response(503)
    subscriptions.disable(subscribe(organization))
    tell()
    assert operator_messages.send_due() == 0
    message = OperatorMessage.objects.get()
    assert (message.attempts, message.due_at > message.created_at) == (1, True)
    assert operator_messages.send_due() == 0
    assert len(operator.requests) == 1  # not yet
    OperatorMessage.objects.update(due_at=Now())
    operator.behavior = lambda request, number: Response(200)
    assert operator_messages.send_due() == 1
    assert operator.requests[0].headers["webhook-id"] == operator.requests[1].headers["webhook-id"]
    assert tell() == 0  # and a failure is told to nobody
    subscriptions.disable(subscribe(organization))
    tell()
    OperatorMessage.objects.update(due_at=Now(), attempts=operator_messages.MAX_ATTEMPTS)
    operator.behavior = lambda request, number: Response(503)
    operator_messages.send_due()
    assert OperatorMessage.objects.count() == 0  # given up


class MailServer:
    """Speaks enough SMTP to take e-mails."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.close()

    def _run(self) -> None:
        while True:
            try:
                stream, _ = self._server.accept()
            except OSError:
                return
            with stream, stream.makefile("rwb", buffering=0) as lines:
                lines.write(b"220 hello\r\n")
                while line := lines.readline():
                    word = line[:4].upper()
                    if word == b"DATA":
                        lines.write(b"354 go on\r\n")
                        text = b""
                        while (one := lines.readline()) != b".\r\n":
                            text += one
                        self.mails.append(message_from_bytes(text, policy=policy.default))
                    lines.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")


@pytest.fixture
def mail_server(settings: Any) -> Iterator[MailServer]:
    """Return a mail server that the settings name."""
    server = MailServer()
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", server.port
    settings.EMAIL_USE_TLS = settings.EMAIL_USE_SSL = False
    settings.OPERATOR_EMAILS = ["ops@example.com", "night@example.com"]
    settings.DEFAULT_FROM_EMAIL = "triggers@example.com"
    yield server
    server.close()


@pytest.mark.django_db(transaction=True)
def test_the_operator_gets_what_happens_together_in_one_email(
    organization: Organization, other_organization: Organization, mail_server: MailServer
) -> None:
    Organization.objects.filter(pk=other_organization.pk).update(name="Évil\nBcc: victim@example.com")
    for owner in (organization, other_organization, organization):
        subscriptions.disable(subscribe(owner, "https://a.example/hook"))
    assert tell() == 3
    assert operator_messages.send_due() == 0  # others may follow
    OperatorMessage.objects.filter(pk=OperatorMessage.objects.first().pk).update(due_at=Now())  # type: ignore[union-attr]
    assert operator_messages.send_due() == 3
    (mail,) = mail_server.mails
    assert mail["Subject"] == "Triggers API: 3 notifications (2 organizations)"
    assert (mail["From"], mail["To"]) == ("triggers@example.com", "ops@example.com, night@example.com")
    text = mail.get_content()
    assert text.count("The subscription to a.example was disabled. Disabled by request.") == 3
    assert OperatorMessage.objects.count() == 0
    subscriptions.disable(subscribe(other_organization))
    tell()
    OperatorMessage.objects.update(due_at=Now())
    assert operator_messages.send_due() == 1
    assert mail_server.mails[1]["Subject"].strip().startswith("Triggers API: endpoint.disabled (Évil Bcc:")
    assert mail_server.mails[1]["Bcc"] is None


@pytest.mark.django_db(transaction=True)
def test_the_operator_s_messages_wait_twice_as_long_after_each_attempt_and_an_hour_at_most(
    organization: Organization, operator: Receiver, settings: Any
) -> None:
    operator.behavior = lambda request, number: Response(503)
    settings.EMAIL_BACKEND = "django.core.mail.backends.smtp.EmailBackend"
    settings.EMAIL_HOST, settings.EMAIL_PORT = "127.0.0.1", 9  # where nobody listens
    settings.OPERATOR_EMAILS = ["ops@example.com"]
    subscriptions.disable(subscribe(organization))
    tell()
    for earlier, minutes in ((0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (38, 60)):
        wait = datetime.timedelta(minutes=minutes)
        OperatorMessage.objects.update(attempts=earlier, due_at=Now())
        began = database_time()
        assert operator_messages.send_due() == 0
        ended = database_time()
        messages = list(OperatorMessage.objects.all())
        assert [message.attempts for message in messages] == [earlier + 1] * 2, "one of each channel"
        for message in messages:
            assert began + wait <= message.due_at <= ended + wait, earlier


@pytest.mark.django_db(transaction=True)
def test_a_message_that_is_tried_again_keeps_its_time_whatever_else_is_sent(
    organization: Organization, operator: Receiver
) -> None:
    operator.behavior = lambda request, number: Response(503)
    subscriptions.disable(subscribe(organization))
    tell()
    assert operator_messages.send_due() == 0
    OperatorMessage.objects.update(due_at=Now() + HOUR)
    operator.behavior = lambda request, number: Response(200)
    subscriptions.disable(subscribe(organization))
    tell()
    assert operator_messages.send_due() == 1
    first, second = operator.requests
    assert second.headers["webhook-id"] != first.headers["webhook-id"]
    assert str(OperatorMessage.objects.get().pk) == first.headers["webhook-id"]


@pytest.mark.django_db(transaction=True)
def test_each_kind_reaches_the_organization_the_operators_signed_webhook_and_the_mail(
    organization: Organization, operator: Receiver, mail_server: MailServer, settings: Any
) -> None:
    settings.DELIVERY_RETRY_SCHEDULE = (0,)
    settings.BREAKER_THRESHOLD = 0
    watching = watch(organization)
    broken = subscribe(organization, "https://broken.example/hook?token=s3cret")
    key = create_api_key(organization, name="till")[0]
    ApiKey.objects.filter(pk=key.pk).update(expires_at=Now() + datetime.timedelta(days=6))
    accept(organization)
    fail(broken)
    assert tell() == 2
    accept(organization)
    succeed(broken)
    assert tell() == 1
    subscriptions.disable(broken)
    assert (tell(), tell_of_keys()) == (1, 1)
    fan_out()
    sent = Delivery.objects.filter(subscription=watching).values_list("event__type", flat=True)
    assert sorted(sent) == sorted(EVENT_TYPES), "each once to the organization"
    OperatorMessage.objects.update(due_at=Now())
    assert (operator_messages.send_due(), operator_messages.send_due()) == (10, 0)
    documents = {}
    for request in operator.requests:
        Webhook(SECRET).verify(request.body, {name.lower(): value for name, value in request.headers.items()})
        assert b"s3cret" not in request.body
        document = json.loads(request.body)
        documents[document["type"]] = document
    assert (len(operator.requests), sorted(documents)) == (5, sorted(EVENT_TYPES))
    failing = documents["triggers.endpoint.failing"]
    assert failing["data"]["organization"] == {"id": str(organization.pk), "name": "Acme"}
    page = reverse("admin:webhooks_subscription_change", args=[broken.pk])
    assert failing["data"]["link"] == f"https://hooks.example.com{page}"
    assert failing["text"].startswith("Acme: The endpoint broken.example has been failing since")
    (mail,) = mail_server.mails
    assert mail["Subject"].startswith("Triggers API: 5 notifications")
    text = re.sub(r"\s+", " ", mail.get_content())
    for document in documents.values():
        assert re.sub(r"\s+", " ", document["data"]["message"]) in text, document["type"]
    assert "s3cret" not in text
    assert OperatorMessage.objects.count() == 0


# --- with what really runs --------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_an_operational_event_is_delivered_as_every_event_is(organization: Organization, receiver: Receiver) -> None:
    watching, secret = subscriptions.create(
        organization.id, url=receiver.url("/ops"), event_types=["triggers.endpoint.*"], is_operational=True
    )
    gone = subscribe(organization, receiver.url("/gone"))
    receiver.behavior = lambda request, number: Response(410 if request.path == "/gone" else 200)
    accept(organization)
    with sending():
        wait_until(lambda: not Subscription.objects.get(pk=gone.pk).is_active, "it is still enabled")
        Sweep(lambda: None).run()
        fan_out()
        (request,) = wait_until(
            lambda: [one for one in receiver.requests if one.path == "/ops"], "nothing was delivered"
        )
        wait_until(lambda: statuses(subscription=watching) == ["delivered"], "it isn't recorded")
    Webhook(secret).verify(request.body, {name.lower(): value for name, value in request.headers.items()})
    document = json.loads(request.body)
    assert document["type"] == "triggers.endpoint.disabled"
    assert document["data"]["subscription"]["id"] == str(gone.pk)
    assert document["data"]["cause"]["automatically"] is True
    assert document["data"]["waiting_deliveries"] <= notifications.COUNT_WAITING_TO
