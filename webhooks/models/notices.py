"""What organizations and operators are told."""

from __future__ import annotations

from typing import ClassVar

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now

from core.ids import new_id


class NoticeKind(models.TextChoices):
    """What operators and organizations are told of: each is the type of an operational event, without its prefix."""

    ENDPOINT_FAILING = "endpoint.failing"
    ENDPOINT_DISABLED = "endpoint.disabled"
    ENDPOINT_RECOVERED = "endpoint.recovered"
    DELIVERY_FAILED = "delivery.failed"
    KEY_EXPIRING = "key.expiring"


class Notice(models.Model):
    """What there is to tell of one kind about one subscription or API key, and when that was done last.

    One row for each subject and kind, however often it happens: what happens while nothing may be told is counted here
    and told together.  `webhooks.notices` writes it, and `webhooks.upkeep.notifications` tells it.
    """

    pk = models.CompositePrimaryKey("subject_id", "kind")
    subject_id = models.UUIDField()
    kind = models.CharField(max_length=30, choices=NoticeKind.choices)
    organization_id = models.UUIDField()
    since = models.DateTimeField(
        null=True, help_text="When the first of what hasn't been told happened; empty for none. Of an endpoint that "
        "fails: since when.",
    )  # fmt: skip
    number = models.PositiveIntegerField(default=0, db_default=0, help_text="How often it has happened since then.")
    detail = models.JSONField(default=dict, db_default=Value({}, models.JSONField()))
    told_at = models.DateTimeField(null=True)
    is_open = models.BooleanField(
        default=False, db_default=False, help_text="It was told that the endpoint fails, and not yet that it recovered."
    )

    class Meta:
        indexes: ClassVar = [
            models.Index(
                fields=["since"], condition=Q(since__isnull=False, is_open=False), name="webhooks_notice_untold"
            ),
            models.Index(fields=["subject_id"], condition=Q(is_open=True), name="webhooks_notice_open"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} of {self.subject_id}"


class OperatorMessage(models.Model):
    """A notification on its way to the operator by one channel; the row goes when it has arrived."""

    class Channel(models.TextChoices):
        """By e-mail to OPERATOR_EMAILS, or as a request to OPERATOR_WEBHOOK_URL."""

        EMAIL = "email"
        WEBHOOK = "webhook"

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    channel = models.CharField(max_length=10, choices=Channel.choices)
    content = models.JSONField()
    attempts = models.PositiveSmallIntegerField(default=0, db_default=0)
    due_at = models.DateTimeField(db_default=Now())
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        indexes: ClassVar = [models.Index(fields=["channel", "due_at"], name="webhooks_opmessage_due")]

    def __str__(self) -> str:
        return f"{self.channel} {self.id}"
