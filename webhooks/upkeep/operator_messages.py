"""Messages to the operator, stored with what they report, and sent by e-mail and HTTP by a thread of the worker.

They aren't deliveries: the addresses are the operator's own, so the rules for tenants' URLs don't apply, and a failure
makes no notification.  A message is claimed by making it due later, so that one whose worker is killed is sent by
another; it may arrive twice, and is dropped only after MAX_ATTEMPTS.
"""

from __future__ import annotations

import datetime
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import orjson
import structlog
from django.conf import settings
from django.core.mail import EmailMessage
from django.db.models.functions import Now
from psycopg.rows import class_row

from core.db import borrow_connection, in_transaction, server_cursor
from webhooks.destinations.http.destination import USER_AGENT
from webhooks.destinations.http.signing import secret_key, sign
from webhooks.models import OperatorMessage

log = structlog.get_logger()

Channel = OperatorMessage.Channel

POLL_SECONDS = 1.0
# An e-mail waits this long for others to be sent with it: endpoints often fail together.
GATHER_SECONDS = 20.0
IN_AN_EMAIL = 200
REQUESTS_AT_A_TIME = 20
REQUEST_SECONDS = 10.0
# With waits of 1, 2, 4, … minutes, and then of an hour: a day and a half.
MAX_ATTEMPTS = 40

# SQL, because the ORM's update returns no rows.  Those that are due, and with them those that wait for others.
CLAIM_MESSAGES = """
UPDATE webhooks_operatormessage SET
    attempts = attempts + 1, due_at = clock_timestamp() + make_interval(secs => least(3600, 60 * power(2, attempts)))
WHERE id IN (
    SELECT id FROM webhooks_operatormessage
    WHERE channel = %(channel)s AND (due_at <= statement_timestamp() OR attempts = 0 AND EXISTS (
        SELECT FROM webhooks_operatormessage WHERE channel = %(channel)s AND due_at <= statement_timestamp()
    ))
    ORDER BY due_at LIMIT %(rows)s FOR UPDATE SKIP LOCKED
)
RETURNING id, content::text, attempts
"""


@dataclass(frozen=True, slots=True)
class _Message:
    """A row of CLAIM_MESSAGES."""

    id: uuid.UUID
    content: str
    attempts: int

    @property
    def document(self) -> dict[str, Any]:
        """Return what is told."""
        found: dict[str, Any] = orjson.loads(self.content)
        return found


def channels() -> list[OperatorMessage.Channel]:
    """Return the channels that the operator has configured."""
    wanted = {Channel.EMAIL: bool(settings.OPERATOR_EMAILS), Channel.WEBHOOK: bool(settings.OPERATOR_WEBHOOK_URL)}
    return [channel for channel, is_wanted in wanted.items() if is_wanted]


def send_to_operator(content: Mapping[str, Any]) -> None:
    """Store a message for each channel, in the caller's transaction."""
    for channel in channels():
        gather = GATHER_SECONDS if channel == Channel.EMAIL else 0.0
        due_at = Now() + datetime.timedelta(seconds=gather)
        OperatorMessage.objects.create(channel=channel, content=dict(content), due_at=due_at)


def send_due() -> int:
    """Send what is due; return how many messages have arrived.  No transaction is open meanwhile."""
    sent = 0
    for channel in channels():
        rows = IN_AN_EMAIL if channel == Channel.EMAIL else REQUESTS_AT_A_TIME
        messages = borrow_connection(lambda channel=channel, rows=rows: _claim(channel, rows))  # type: ignore[misc]
        groups = [messages] if channel == Channel.EMAIL else [[one] for one in messages]
        for group in groups:
            if group and _attempt(channel, group):
                sent += len(group)
    return sent


def _claim(channel: OperatorMessage.Channel, rows: int) -> list[_Message]:
    def work() -> list[_Message]:
        with server_cursor(class_row(_Message)) as cursor:
            return cursor.execute(CLAIM_MESSAGES, {"channel": channel.value, "rows": rows}).fetchall()

    return in_transaction(work)


def _attempt(channel: OperatorMessage.Channel, messages: Sequence[_Message]) -> bool:
    """Send messages together, and delete them if they have arrived or this was the last attempt."""
    try:
        if channel == Channel.EMAIL:
            _email(messages)
        else:
            _post(messages[0])
        arrived = True
    except Exception as error:  # whatever a mail server or an HTTP server does
        arrived = False
        log.warning("operator_not_told", channel=channel.value, messages=len(messages), error=repr(error)[:300])
    over = [one.id for one in messages if arrived or one.attempts >= MAX_ATTEMPTS]
    if over and not arrived:
        log.error("operator_messages_dropped", channel=channel.value, messages=len(over))
    if over:
        borrow_connection(lambda: OperatorMessage.objects.filter(pk__in=over).delete())
    return arrived


def _email(messages: Sequence[_Message]) -> None:
    contents = [one.document for one in messages]
    organizations = sorted({one["data"]["organization"]["name"] for one in contents})
    what = contents[0]["type"].partition(".")[2] if len(contents) == 1 else f"{len(contents)} notifications"
    of_whom = organizations[0] if len(organizations) == 1 else f"{len(organizations)} organizations"
    text = "\n\n".join(
        f"{one['data']['organization']['name']}: {one['data']['message']}\n{_waiting(one['data'])}{one['data']['link']}"
        for one in contents
    )
    subject = " ".join(f"Triggers API: {what} ({of_whom})".split())[:200]
    EmailMessage(subject, f"{text}\n", settings.DEFAULT_FROM_EMAIL, settings.OPERATOR_EMAILS).send()


def _waiting(data: Mapping[str, Any]) -> str:
    waiting = data.get("waiting_deliveries")
    return f"{waiting} deliveries wait.\n" if waiting else ""


def _post(message: _Message) -> None:
    # Incoming webhooks of chat systems show `text`.
    document = message.document
    data = document["data"]
    text = f"{data['organization']['name']}: {data['message']} {data['link']}"
    body = orjson.dumps({"id": str(message.id), "text": text, **document})
    timestamp = int(time.time())
    headers = {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": str(message.id),
        "webhook-timestamp": str(timestamp),
    }
    if settings.OPERATOR_WEBHOOK_SECRET:
        key = secret_key(settings.OPERATOR_WEBHOOK_SECRET)
        headers["webhook-signature"] = sign([key], str(message.id), timestamp, body)
    response = httpx.post(settings.OPERATOR_WEBHOOK_URL, content=body, headers=headers, timeout=REQUEST_SECONDS)
    response.raise_for_status()


class Notifier:
    """The thread that sends messages to the operator until the worker stops; no failure ends it."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notifier", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; a message that is being sent is sent again by another worker."""
        self._stopping.set()
        self._thread.join(1.0)

    def _run(self) -> None:
        while not self._stopping.wait(POLL_SECONDS):
            try:
                send_due()
            except Exception as error:
                log.warning("operator_messages_wait", error=repr(error)[:300])


def start_notifier() -> Notifier | None:
    """Start the thread, if the operator has configured a channel."""
    return Notifier() if channels() else None
