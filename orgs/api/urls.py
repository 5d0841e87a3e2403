from django.urls import path

from orgs.api import views

urlpatterns = [
    path("me", views.MeView.as_view(), name="me"),
    path("keys", views.KeyListView.as_view(), name="key-list"),
    path("keys/<uuid:key_id>", views.KeyView.as_view(), name="key"),
    path("keys/<uuid:key_id>/rotate", views.KeyRotateView.as_view(), name="key-rotate"),
    path("audit", views.AuditListView.as_view(), name="audit-list"),
]
