from django.urls import path

from events.api import views

urlpatterns = [
    path("events", views.EventListView.as_view(), name="event-list"),
    path("events/batch", views.EventBatchView.as_view(), name="event-batch"),
    path("events/<uuid:event_id>", views.EventView.as_view(), name="event"),
]
