from django.urls import path

from portal.api.views import PortalLinkListView

urlpatterns = [
    path("portal-links", PortalLinkListView.as_view(), name="portal-link-list"),
]
