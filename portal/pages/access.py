"""How a visit begins and ends: the link, the sign-out, and the style sheet with the portal's color."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from portal import branding, sessions
from portal.sessions import Refused
from portal.web import PortalView, brand, finish, is_from_another_site, message_page, refusal_page, set_cookie


@method_decorator(csrf_exempt, name="dispatch")
class OpenView(View):
    """Where links lead.

    The token is in the fragment, which the browser doesn't send.  A script of the page takes it from there and sends
    it in the body of a POST; so programs that only look at links (mail scanners, chats) don't use them up either.
    """

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return finish(super().dispatch(request, *args, **kwargs))

    def get(self, request: HttpRequest) -> HttpResponse:
        """Show the page with that script."""
        return render(request, "portal/open.html", {"brand": brand()})

    def post(self, request: HttpRequest) -> HttpResponse:
        """Open the link: begin a session with its own token, whatever cookie came with the request."""
        if is_from_another_site(request):
            return message_page(
                request, 403, "This link wasn't opened by its own page", "Open the link itself in your browser."
            )
        try:
            session, token = sessions.open_link(request.POST.get("token", ""), request)
        except Refused as error:
            return refusal_page(request, error.reason)
        response = HttpResponseRedirect(reverse("portal:endpoints"))
        set_cookie(response, token, session.session_seconds)
        return response


class CloseView(PortalView):
    """Signing out."""

    is_harmless = True

    def post(self, request: HttpRequest) -> HttpResponse:
        """End the session."""
        sessions.end(self.portal, request)
        response = refusal_page(request, sessions.Refusal.SIGNED_OUT)
        set_cookie(response, "", 0)
        return response


def theme(request: HttpRequest) -> HttpResponse:
    """Return the style sheet with the portal's color."""
    response = HttpResponse(branding.theme(), content_type="text/css")
    response.headers["Cache-Control"] = "public, max-age=300"
    return response
