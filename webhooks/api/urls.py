from django.urls import path

from webhooks.api import views

_one = "subscriptions/<uuid:subscription_id>"

urlpatterns = [
    path("subscriptions", views.SubscriptionListView.as_view(), name="subscription-list"),
    path(_one, views.SubscriptionView.as_view(), name="subscription"),
    path(f"{_one}/enable", views.SubscriptionEnableView.as_view(), name="subscription-enable"),
    path(f"{_one}/disable", views.SubscriptionDisableView.as_view(), name="subscription-disable"),
    path(f"{_one}/rotate-secret", views.SubscriptionRotateSecretView.as_view(), name="subscription-rotate-secret"),
    path(f"{_one}/recover", views.SubscriptionRecoverView.as_view(), name="subscription-recover"),
    path(f"{_one}/recoveries/<uuid:run_id>", views.SubscriptionRecoveryView.as_view(), name="subscription-recovery"),
    path("deliveries", views.DeliveryListView.as_view(), name="delivery-list"),
    path("deliveries/<uuid:delivery_id>", views.DeliveryView.as_view(), name="delivery"),
    path("deliveries/<uuid:delivery_id>/retry", views.DeliveryRetryView.as_view(), name="delivery-retry"),
]
