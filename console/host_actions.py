"""“Stop this host” and “Enable this host”: every subscription that leads to the hosts of the selected rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Any

from django import forms
from django.contrib import messages
from django.http import HttpRequest, HttpResponse

from console.confirmation import OptionalReasonForm, Question, ReasonForm, answer, question_page, reason_of
from console.model_admin import BoundedAdmin
from orgs import audit
from webhooks import hosts
from webhooks.display.formatting import short, table
from webhooks.models import Subscription

MOST_HOSTS = 20
SHOWN_ROWS = 50

OWN, ALL = "own", "all"


class _Scope(forms.Form):
    scope = forms.ChoiceField(
        label="Whose subscriptions", choices=[(OWN, ""), (ALL, "")], initial=OWN, widget=forms.RadioSelect
    )


class StopHostForm(_Scope, ReasonForm):
    """The confirmation of stopping a host."""

    field_order = ("scope", "reason", "seen_at")


class EnableHostForm(_Scope, OptionalReasonForm):
    """The confirmation of enabling a host."""

    field_order = ("scope", "reason", "seen_at")


def stop_or_enable(
    model_admin: BoundedAdmin, request: HttpRequest, chosen: Iterable[tuple[str, uuid.UUID]], *, stop: bool
) -> HttpResponse | None:
    """Find the subscriptions to the hosts, ask which to change, disable or enable those, and say how many were changed.

    Disabling is for all subscriptions of a host; enabling is for those that were stopped with it.

    chosen: hosts, each with an organization that the selected rows belong to.
    """
    owners: dict[str, set[uuid.UUID]] = {}
    for host, organization_id in chosen:
        if host:
            owners.setdefault(host, set()).add(organization_id)
    if not owners or len(owners) > MOST_HOSTS:
        text = f"Select rows of 1 to {MOST_HOSTS} hosts; these are of {len(owners)}. Nothing was changed."
        model_admin.message_user(request, text, messages.ERROR)
        return None
    form = answer(request, StopHostForm if stop else EnableHostForm)
    uses = [(host, use) for host in owners for use in hosts.host_use(host)]
    own = [(host, use) for host, use in uses if use.organization_id in owners[host]]

    def count(rows: list[tuple[str, hosts.HostUse]]) -> int:
        return sum(use.active if stop else use.stopped for _, use in rows)

    names = ", ".join(sorted({use.organization_name for _, use in own})[:3]) or "the selected rows’ organization"  # noqa: RUF001
    scope: Any = form.fields["scope"]
    scope.choices = [
        (OWN, f"Only {short(names, 80)}: {_subscriptions(count(own))}"),
        (ALL, f"All organizations: {_subscriptions(count(uses))}"),
    ]
    if not form.is_valid():
        return question_page(model_admin, request, form, _question(list(owners), uses, stop, count(uses)))
    everybody = form.cleaned_data["scope"] == ALL
    reason = reason_of(form)
    changed = 0
    for host, organizations in owners.items():
        scopes: list[uuid.UUID | None] = [None] if everybody else [*sorted(organizations)]
        changed += sum(_change(request, host, organization_id, reason, stop) for organization_id in scopes)
    word = "disabled" if stop else "enabled"
    way_back = " To send to them again, use “Enable this host”." if stop and changed else ""
    level = messages.SUCCESS if changed else messages.WARNING
    model_admin.message_user(request, f"{_subscriptions(changed)} {word}.{way_back}", level)
    return None


def _change(request: HttpRequest, host: str, organization_id: uuid.UUID | None, reason: str, stop: bool) -> int:
    def write(owner: uuid.UUID, rows: list[Subscription]) -> None:
        audit.record_for_user(
            request, "host.stop" if stop else "host.enable", owner, host, {"host": host, "count": len(rows)},
            name=f"{host} ({_subscriptions(len(rows))})", reason=reason, targets=[row.pk for row in rows],
        )  # fmt: skip

    if stop:
        by = f"Host {host} stopped by the operator: {reason}"
        return hosts.stop(host, organization_id, by, write)
    return hosts.enable(host, organization_id, write)


def _question(names: list[str], uses: list[tuple[str, hosts.HostUse]], stop: bool, count: int) -> Question:
    host = names[0] if len(names) == 1 else f"{len(names)} hosts"
    word = "Stop" if stop else "Enable"
    if stop:
        text = (
            f"Every active subscription whose URL leads to {', '.join(names)} would be disabled. Nothing more is sent "
            "there, and what waits is held until the host is enabled again. Subscriptions that are created later are "
            "active."
        )
    else:
        text = (
            f"Every subscription that was stopped together with {', '.join(names)} would be enabled, and what was held "
            "for it is sent. Those that were disabled for another reason stay disabled."
        )
    rows = [
        (host_name, short(use.organization_name, 60), f"{use.active:,}", f"{use.stopped:,}")
        for host_name, use in uses[:SHOWN_ROWS]
    ]
    if len(uses) > SHOWN_ROWS:
        rest = [use for _, use in uses[SHOWN_ROWS:]]
        rows.append(
            ("-", f"{len(rest):,} more organizations", f"{sum(use.active for use in rest):,}",
             f"{sum(use.stopped for use in rest):,}")
        )  # fmt: skip
    shown = table(("host", "organization", "active subscriptions", "stopped with the host"), rows)
    return Question(f"{word} {host}?", f"{word} {host}", [text], [("Subscriptions", shown)], nothing_to_do=not count)


def _subscriptions(count: int) -> str:
    return f"{count:,} subscription{'' if count == 1 else 's'}"
