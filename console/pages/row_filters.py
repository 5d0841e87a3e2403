"""Filters by another row that links and searches set."""

from __future__ import annotations

from console.filters import ExactFilter
from events.models import Event
from webhooks.models import Delivery, Subscription


class EventFilter(ExactFilter):
    """Deliveries of one event."""

    title = "event"
    parameter_name = "event"
    column = "event_id"
    model = Event


class SubscriptionFilter(ExactFilter):
    """Rows of one subscription."""

    title = "subscription"
    parameter_name = "subscription"
    column = "subscription_id"
    model = Subscription


class DeliveryFilter(ExactFilter):
    """Attempts of one delivery."""

    title = "delivery"
    parameter_name = "delivery"
    column = "delivery_id"
    model = Delivery
