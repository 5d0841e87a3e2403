"""The admin's pages for sessions and links of the portal.

They are here because neither of the console and the portal knows the other.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, ClassVar

from django.contrib import admin
from django.db import transaction
from django.db.models import Case, QuerySet, Value, When
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse
from django.utils.safestring import SafeString

from console.actions import TooMany, refuse_too_many, report, selected_ids
from console.confirmation import Question, ReasonForm, answer, question_page, reason_of
from console.filters import OrganizationFilter
from console.formatting import object_link
from console.model_admin import ReadOnlyAdmin
from console.pages import audit_log, organizations
from core.ids import parse_id
from portal import sessions
from portal.models import PORTAL_SCOPES, PortalSession
from webhooks.display.formatting import badge, format_time, short, short_id, table

# The console's pages lead to the portal's.
audit_log.PAGES["portal"] = "portal_portalsession"
organizations.RELATED.append(("portal_portalsession", "portal sessions", {}))

SHOWN_ROWS = 20
OPEN, UNOPENED, ENDED, EXPIRED = "open", "not opened yet", "ended", "expired"
# The look of each state, by the name of a state that has it.
_LOOKS = {OPEN: "active", UNOPENED: "pending", ENDED: "disabled", EXPIRED: "cancelled"}
# By the database's clock.
_STATE = Case(
    When(ended_at__isnull=False, then=Value(ENDED)),
    When(opened_at=None, link_expires_at__gt=Now(), then=Value(UNOPENED)),
    When(expires_at__gt=Now(), then=Value(OPEN)),
    default=Value(EXPIRED),
)


class SessionStateFilter(admin.SimpleListFilter):
    """Sessions and links that are good, or over."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(state, state) for state in _LOOKS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        value = self.value()
        if value is None:
            return queryset
        return queryset.filter(state=value) if value in _LOOKS else queryset.none()


@admin.register(PortalSession)
class PortalSessionAdmin(ReadOnlyAdmin):
    """Who can use the portal, for which organization, and until when."""

    audit_noun = "portal"
    list_display = (
        "created_display", "organization_link", "name_display", "access_display", "state_display", "until_display",
        "key_link", "id_display",
    )  # fmt: skip
    list_display_links = ("created_display",)
    list_select_related = ("organization", "key")
    list_filter = (SessionStateFilter, OrganizationFilter)
    search_fields = ("id",)
    search_help_text = "A session's exact id, which the audit log names as portal:…"
    fields: ClassVar = (
        "organization_link", "name_display", "access_display", "state_display", "key_link", "created_at",
        "link_expires_at", "opened_at", "expires_at", "ended_at", "id",
    )  # fmt: skip
    actions = ("end_session",)
    object_actions = ("end_session",)
    dangerous_actions = ("end_session",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[PortalSession]:
        """Return sessions with their states, without the hashes of their tokens."""
        rows: QuerySet[PortalSession] = super().get_queryset(request)
        return rows.defer("link_hash", "token_hash").annotate(state=_STATE)

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Newest first; those of one organization in the order of their index."""
        return ("-link_expires_at", "-id") if "organization" in request.GET else ("-id",)

    # --- what is shown ------------------------------------------------------------------------------

    @admin.display(description="link made")
    def created_display(self, row: PortalSession) -> str:
        return format_time(row.created_at)

    @admin.display(description="for")
    def name_display(self, row: PortalSession) -> str:
        return short(row.name) or "-"

    @admin.display(description="access")
    def access_display(self, row: PortalSession) -> str:
        allowed = [scope.value for scope in PORTAL_SCOPES if row.may(scope)]
        if len(allowed) == len(PORTAL_SCOPES):
            return "full"
        is_usual = set(row.scopes) == set(PORTAL_SCOPES)
        return "read-only" if row.is_read_only and is_usual else ", ".join(allowed) or "endpoints, read-only"

    @admin.display(description="state")
    def state_display(self, row: Any) -> SafeString:
        return badge(_LOOKS[row.state], row.state)

    @admin.display(description="until")
    def until_display(self, row: PortalSession) -> str:
        return format_time(row.ended_at or row.expires_at or row.link_expires_at)

    @admin.display(description="link made with")
    def key_link(self, row: PortalSession) -> SafeString | str:
        return object_link(row.key)

    @admin.display(description="id")
    def id_display(self, row: PortalSession) -> SafeString:
        return short_id(row.pk)

    def search(self, request: HttpRequest, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Find by id, also as the audit log writes it."""
        row_id = parse_id(term.removeprefix("portal:"))
        return queryset.filter(pk=row_id) if row_id else queryset.none()

    # --- ending -------------------------------------------------------------------------------------

    def fits(self, action: str, row: Any) -> bool:
        """Offer to end only what isn't over."""
        return row.state in {OPEN, UNOPENED}

    def has_end_permission(self, request: HttpRequest) -> bool:
        """Whether the user may end sessions, for `permissions=["end"]`."""
        return request.user.has_perm("portal.end_portalsession")

    @admin.action(description="End session…", permissions=["end"])
    def end_session(self, request: HttpRequest, queryset: QuerySet[PortalSession]) -> HttpResponse | None:
        """End the selected sessions, for a reason; each is refused from the next request on, and so is a link."""
        try:
            chosen = selected_ids(queryset)
        except TooMany:
            refuse_too_many(self, request, "Revoke the key that makes the links: that ends all of its sessions.")
            return None
        rows = list(self.get_queryset(request).filter(pk__in=chosen).select_related("organization", "key"))
        live: list[Any] = [row for row in rows if self.fits("end_session", row)]
        form = answer(request, ReasonForm)
        if live and not form.is_valid():
            what = f"{len(live):,} portal session{'' if len(live) == 1 else 's'}"
            texts = [
                "Requests are refused from the next one on, and a link that wasn't opened yet opens no more. Whoever "
                "has the API key can make new links; revoke the key to stop that, too."
            ]
            shown = table(("organization", "for", "state", "until"), [
                (short(row.organization.name, 60), self.name_display(row), self.state_display(row),
                 self.until_display(row))
                for row in live[:SHOWN_ROWS]
            ])  # fmt: skip
            question = Question(f"End {what}?", f"End {what}", texts, [("Portal sessions", shown)])
            return question_page(self, request, form, question)
        changed = 0
        owned: dict[Any, list[PortalSession]] = defaultdict(list)
        for row in live:
            owned[row.organization_id].append(row)
        for of_one in owned.values():
            with transaction.atomic():
                done = [row for row in of_one if sessions.mark_ended(row)]
                self.audit_many(request, "portal.end", done, {}, reason_of(form))
            changed += len(done)
        report(self, request, "ended", changed, {"already over": len(chosen) - changed})
        return None
