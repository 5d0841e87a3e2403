"""The portal's pages.  The tenancy walk (tests/security/test_tenancy.py, tests/portal/test_attacks.py) knows each."""

from django.urls import path

from portal.pages import (
    access,
    deliveries,
    endpoint_actions,
    endpoints,
    event_types,
    help_page,
    logs,
    recovery,
    secrets,
)

app_name = "portal"
_one = "endpoints/<uuid:endpoint_id>"

urlpatterns = [
    path("open", access.OpenView.as_view(), name="open"),
    path("close", access.CloseView.as_view(), name="close"),
    path("theme.css", access.theme, name="theme"),
    path("", endpoints.EndpointListView.as_view(), name="endpoints"),
    path("endpoints/new", endpoints.NewEndpointView.as_view(), name="new-endpoint"),
    path(_one, endpoints.EndpointView.as_view(), name="endpoint"),
    path(f"{_one}/edit", endpoints.EditEndpointView.as_view(), name="edit-endpoint"),
    path(f"{_one}/test", endpoint_actions.TestView.as_view(), name="test-endpoint"),
    path(f"{_one}/enable", endpoint_actions.EnableView.as_view(), name="enable-endpoint"),
    path(f"{_one}/disable", endpoint_actions.DisableView.as_view(), name="disable-endpoint"),
    path(f"{_one}/delete", endpoint_actions.DeleteView.as_view(), name="delete-endpoint"),
    path(f"{_one}/secret", secrets.RotateView.as_view(), name="rotate-secret"),
    path(f"{_one}/recover", recovery.RecoverView.as_view(), name="recover"),
    path(f"{_one}/recoveries/<uuid:run_id>", recovery.RecoveryView.as_view(), name="recovery"),
    path("event-types", event_types.EventTypesView.as_view(), name="event-types"),
    path("deliveries", deliveries.DeliveryListView.as_view(), name="deliveries"),
    path("deliveries/<uuid:delivery_id>", deliveries.DeliveryView.as_view(), name="delivery"),
    path("deliveries/<uuid:delivery_id>/retry", deliveries.RetryView.as_view(), name="retry-delivery"),
    path("deliveries/<uuid:delivery_id>/skip", deliveries.SkipView.as_view(), name="skip-delivery"),
    path("logs", logs.LogsView.as_view(), name="logs"),
    path("help", help_page.HelpView.as_view(), name="help"),
]
