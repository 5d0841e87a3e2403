"""What all pages of the portal have in common: the session, forms that only it can send, headers, pages for errors.

Django's own CSRF cookie isn't sent in a frame of another site, so the forms carry a token that is made from the
session's, which only the browser and this process know.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from django.conf import settings
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.urls import reverse
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.csrf import csrf_exempt

from orgs.scopes import Scope
from portal import branding, sessions
from portal.models import PortalSession
from portal.sessions import Refusal, Refused

COOKIE = "triggers_portal"
_SAFE = {"GET", "HEAD", "OPTIONS"}

# For each refusal: the status, the title, and what people can do.
REFUSALS: dict[Refusal, tuple[int, str, str]] = {
    Refusal.FORGED: (
        403, "This link isn't valid",
        "It may have been cut off on its way. Copy the whole link, or open the portal again from where you got it.",
    ),
    Refusal.LINK_EXPIRED: (
        410, "This link has expired",
        "Links work for a short time only. Open the portal again from where you got it; nothing is lost.",
    ),
    Refusal.LINK_USED: (
        410, "This link has been used already",
        "Each link opens the portal once. Open the portal again from where you got it. If it wasn't you who used the "
        "link, tell whoever gave it to you.",
    ),
    Refusal.NO_SESSION: (
        403, "You aren't signed in",
        "Open the portal from where you got its link. If you have just done that, your browser may refuse its cookies: "
        "allow them for this site, or open the portal in a separate window.",
    ),
    Refusal.SESSION_EXPIRED: (
        403, "Your session has expired",
        "Everything that you saved is kept. Open the portal again from where you got its link.",
    ),
    Refusal.ENDED: (
        403, "This session has ended",
        "You signed out, or somebody who runs this service ended it. Open the portal again from where you got its "
        "link.",
    ),
    Refusal.SIGNED_OUT: (
        200, "You have signed out", "To come back, open the portal again from where you got its link."
    ),
    Refusal.ACCESS_ENDED: (
        403, "Your access has ended",
        "Whoever gave you the link has ended it. If that surprises you, ask them.",
    ),
}  # fmt: skip


def form_token(session_token: str) -> str:
    """Return the token that the forms of a session carry."""
    return hmac.new(session_token.encode(), b"portal form", hashlib.sha256).hexdigest()


def is_from_another_site(request: HttpRequest) -> bool:
    """Return whether the browser says that a page of another origin sent the request."""
    return request.headers.get("Sec-Fetch-Site", "same-origin") not in {"same-origin", "none"}


def finish(response: HttpResponseBase) -> HttpResponseBase:
    """Set the headers of every page of the portal: who may frame it, and that it isn't cached."""
    policy = {name: list(values) for name, values in settings.CONTENT_SECURITY_POLICY["DIRECTIVES"].items()}
    if settings.PORTAL_FRAME_ORIGINS:
        policy["frame-ancestors"] = ["'self'", *settings.PORTAL_FRAME_ORIGINS]
        # X-Frame-Options knows no list of origins; browsers that know the policy ignore it.
        response.xframe_options_exempt = True  # type: ignore[attr-defined]
    if origin := branding.logo_origin():
        policy["img-src"].append(origin)
    response.headers["Content-Security-Policy"] = "; ".join(f"{name} {' '.join(of)}" for name, of in policy.items())
    response.headers.setdefault("Cache-Control", "no-store")
    return response


def set_cookie(response: HttpResponse, token: str, seconds: int) -> None:
    """Set the session's cookie, or with an empty token delete it.

    In frames of other sites browsers only keep cookies that are secure and partitioned: one for each site that frames
    us.  Django can't write `Partitioned` yet, so the header is written here.
    """
    is_framed = bool(settings.PORTAL_FRAME_ORIGINS)
    parts = [
        f"{COOKIE}={token}",
        f"Path={reverse('portal:endpoints')}",
        f"Max-Age={seconds if token else 0}",
        "HttpOnly",
        *(["SameSite=None", "Secure", "Partitioned"] if is_framed else ["SameSite=Lax"]),
        *(["Secure"] if settings.USE_HTTPS and not is_framed else []),
    ]
    response.headers["Set-Cookie"] = "; ".join(parts)


def message_page(request: HttpRequest, status: int, title: str, text: str) -> HttpResponse:
    """Return a page that says what happened to somebody without a session."""
    context = {"title": title, "text": text, "brand": brand()}
    return render(request, "portal/message.html", context, status=status)


def refusal_page(request: HttpRequest, reason: Refusal) -> HttpResponse:
    """Return the page for a link or a session that is refused."""
    status, title, text = REFUSALS[reason]
    return message_page(request, status, title, text)


def brand() -> dict[str, str]:
    """Return the portal's name and logo, for the templates."""
    return {"name": settings.PORTAL_NAME, "logo": settings.PORTAL_LOGO_URL}


class NotAllowed(Exception):
    """What was asked for isn't possible as things stand; the page says why."""

    def __init__(self, title: str, text: str, status: int = 409) -> None:
        super().__init__(title)
        self.title, self.text, self.status = title, text, status


@method_decorator(csrf_exempt, name="dispatch")
class PortalView(View):
    """A page for somebody with a session.  A view's rows are all found by `self.portal.organization_id`."""

    portal: PortalSession
    # The part of the navigation that is shown as the current one.
    section = ""
    # Whether the page is refused to a read-only session.
    is_only_for_changes = False
    # Whether even a read-only session may submit the page's form.
    is_harmless = False
    # What a session must be allowed for the page, and to change something with it.
    needs: Scope | None = None
    needs_to_change = Scope.SUBSCRIPTIONS_MANAGE

    def dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        return finish(self._dispatch(request, *args, **kwargs))

    def _dispatch(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        token = request.COOKIES.get(COOKIE, "")
        try:
            self.portal = sessions.find(token)
        except Refused as error:
            return refusal_page(request, error.reason)
        self.request, self._form_token = request, form_token(token)
        try:
            return self._refuse(request) or super().dispatch(request, *args, **kwargs)
        except Http404:
            return self._message(404, "There is nothing here", "It may have been deleted, or the address is wrong.")
        except NotAllowed as error:
            return self._message(error.status, error.title, error.text)

    def _refuse(self, request: HttpRequest) -> HttpResponse | None:
        """Return the page that refuses the request; None if the session may make it."""
        is_change = request.method not in _SAFE
        given = request.POST.get("form_token", "") if is_change else ""
        if is_change and (
            is_from_another_site(request) or not hmac.compare_digest(given.encode(), self._form_token.encode())
        ):
            return self._message(
                403, "This form wasn't sent from the portal",
                "Nothing was changed. Go back, reload the page, and try again.",
            )  # fmt: skip
        changes = self.is_only_for_changes or (is_change and not self.is_harmless)
        if changes and self.portal.is_read_only:
            return self._message(
                403, "You have read-only access",
                "Your link is read-only, so nothing was changed. Ask whoever gave it to you for one that can change "
                "things.",
            )  # fmt: skip
        wanted = [self.needs] if self.needs else []
        wanted += [self.needs_to_change] if changes else []
        if not all(map(self.portal.may, wanted)):
            return self._message(
                403, "Your link doesn't allow this",
                "Nothing was changed. Ask whoever gave you the link for one that allows more.",
            )  # fmt: skip
        return None

    def http_method_not_allowed(self, request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponse:
        """Say so on a page: browsers open the address of a result again, such as that of a test event."""
        response = self._message(
            405, "Nothing was done",
            "This address only works with the button that leads to it. Go to the page with that button, and press it "
            "again.",
        )  # fmt: skip
        response.headers["Allow"] = ", ".join(name.upper() for name in self.http_method_names if hasattr(self, name))
        return response

    def _message(self, status: int, title: str, text: str) -> HttpResponse:
        """Return a page that says what happened, with the navigation."""
        return self.page("message.html", status, title=title, text=text)

    def page(self, template: str, status: int = 200, **context: Any) -> HttpResponse:
        """Render a page for the session."""
        context |= {
            "portal": self.portal, "form_token": self._form_token, "section": self.section, "brand": brand(),
            "can_change": self.portal.may(Scope.SUBSCRIPTIONS_MANAGE),
            "can_retry": self.portal.may(Scope.DELIVERIES_RETRY),
            "can_read_deliveries": self.portal.may(Scope.DELIVERIES_READ),
            "can_read_events": self.portal.may(Scope.EVENTS_READ),
        }  # fmt: skip
        return render(self.request, f"portal/{template}", context, status=status)

    def record(self, action: str, target: object, detail: dict[str, Any] | None = None, **more: str) -> None:
        """Add an audit entry, in the caller's transaction."""
        sessions.record(self.portal, self.request, action, target, detail, **more)
