"""The models, a module for each group of tables."""

from webhooks.models.deliveries import Cause, Delivery, DeliveryAttempt, DeliveryStatus
from webhooks.models.notices import Notice, NoticeKind, OperatorMessage
from webhooks.models.rollups import Gauge, Rollup
from webhooks.models.runs import BulkRun, TaskLease
from webhooks.models.subscriptions import (
    ENCRYPTED,
    FORMATS,
    DestinationKind,
    DisabledCause,
    OrderedOnFailure,
    Subscription,
    SubscriptionQueue,
)

__all__ = [
    "ENCRYPTED",
    "FORMATS",
    "BulkRun",
    "Cause",
    "Delivery",
    "DeliveryAttempt",
    "DeliveryStatus",
    "DestinationKind",
    "DisabledCause",
    "Gauge",
    "Notice",
    "NoticeKind",
    "OperatorMessage",
    "OrderedOnFailure",
    "Rollup",
    "Subscription",
    "SubscriptionQueue",
    "TaskLease",
]
