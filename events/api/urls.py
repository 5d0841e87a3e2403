from django.urls import path

from events.api import event_types, views

urlpatterns = [
    path("events", views.EventListView.as_view(), name="event-list"),
    path("events/batch", views.EventBatchView.as_view(), name="event-batch"),
    path("events/<uuid:event_id>", views.EventView.as_view(), name="event"),
    path("events/<uuid:event_id>/payload", views.EventPayloadView.as_view(), name="event-payload"),
    path("event-types", event_types.EventTypeListView.as_view(), name="event-type-list"),
    path("event-types/import", event_types.EventTypeImportView.as_view(), name="event-type-import"),
    path("event-types/settings", event_types.EventTypeSettingsView.as_view(), name="event-type-settings"),
    path("event-types/<uuid:event_type_id>", event_types.EventTypeView.as_view(), name="event-type"),
]
