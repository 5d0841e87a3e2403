from django.urls import path

from webhooks.api import inbox
from webhooks.api.deliveries import DeliveryViewSet
from webhooks.api.hooks import HookViewSet
from webhooks.api.secrets import SecretViewSet
from webhooks.api.subscriptions import SubscriptionViewSet

_subscription = "subscriptions/<uuid:subscription_id>"
_one = SubscriptionViewSet.as_view({"get": "retrieve", "patch": "partial_update", "delete": "destroy"})

urlpatterns = [
    path("subscriptions", SubscriptionViewSet.as_view({"get": "list", "post": "create"}), name="subscription-list"),
    path(_subscription, _one, name="subscription"),
    path(f"{_subscription}/enable", SubscriptionViewSet.as_view({"post": "enable"}), name="subscription-enable"),
    path(f"{_subscription}/disable", SubscriptionViewSet.as_view({"post": "disable"}), name="subscription-disable"),
    path(
        f"{_subscription}/rotate-secret",
        SubscriptionViewSet.as_view({"post": "rotate_secret"}),
        name="subscription-rotate-secret",
    ),
    path(f"{_subscription}/secrets", SecretViewSet.as_view({"get": "list", "post": "create"}), name="secret-list"),
    path(
        f"{_subscription}/secrets/<uuid:secret_id>",
        SecretViewSet.as_view({"patch": "partial_update", "delete": "destroy"}),
        name="secret",
    ),
    path(f"{_subscription}/test", SubscriptionViewSet.as_view({"post": "test"}), name="subscription-test"),
    path(f"{_subscription}/preview", SubscriptionViewSet.as_view({"post": "preview"}), name="subscription-preview"),
    path(f"{_subscription}/recover", SubscriptionViewSet.as_view({"post": "recover"}), name="subscription-recover"),
    path(
        f"{_subscription}/recoveries/<uuid:run_id>",
        SubscriptionViewSet.as_view({"get": "recovery"}),
        name="subscription-recovery",
    ),
    path("hooks", HookViewSet.as_view({"get": "list", "post": "create"}), name="hook-list"),
    path("hooks/sample", HookViewSet.as_view({"get": "sample"}), name="hook-sample"),
    path("hooks/<uuid:hook_id>", HookViewSet.as_view({"delete": "destroy"}), name="hook"),
    path("inbox", inbox.InboxView.as_view(), name="inbox"),
    path("inbox/stream", inbox.InboxStreamView.as_view(), name="inbox-stream"),
    path("inbox/ack", inbox.InboxAckView.as_view(), name="inbox-ack"),
    path("inbox/nack", inbox.InboxNackView.as_view(), name="inbox-nack"),
    path("inbox/extend", inbox.InboxExtendView.as_view(), name="inbox-extend"),
    path("inbox/<uuid:item_id>/ack", inbox.InboxEventAckView.as_view(), name="inbox-event-ack"),
    path("inbox/ack/<uuid:item_id>", inbox.InboxAckEventView.as_view(), name="inbox-ack-event"),
    path("deliveries", DeliveryViewSet.as_view({"get": "list"}), name="delivery-list"),
    path("deliveries/retry", DeliveryViewSet.as_view({"post": "retry_many"}), name="delivery-retry-many"),
    path("retries/<uuid:retry_id>", DeliveryViewSet.as_view({"get": "retry_run"}), name="delivery-retry-run"),
    path("deliveries/<uuid:delivery_id>", DeliveryViewSet.as_view({"get": "retrieve"}), name="delivery"),
    path(
        "deliveries/<uuid:delivery_id>/attempts/<int:number>",
        DeliveryViewSet.as_view({"get": "attempt"}),
        name="delivery-attempt",
    ),
    path("deliveries/<uuid:delivery_id>/retry", DeliveryViewSet.as_view({"post": "retry"}), name="delivery-retry"),
    path("deliveries/<uuid:delivery_id>/skip", DeliveryViewSet.as_view({"post": "skip"}), name="delivery-skip"),
]
