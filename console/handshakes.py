"""The handshake that the form of a subscription asks for."""

from __future__ import annotations

from typing import Any

from django.contrib.admin.utils import flatten_fieldsets, unquote
from django.http import HttpRequest

from console.model_admin import BoundedAdmin
from console.subscription_forms import Handshake
from webhooks import handshake, probes
from webhooks.models import Subscription


def shake_hands(model_admin: BoundedAdmin, request: HttpRequest, object_id: str | None) -> Handshake | None:
    """Send the endpoint the handshake that a posted form asks for, outside of the transaction that saves the form.

    Returns what came of it; None if none was made, because the form or the user can't change anything.
    """
    row = None if object_id is None else model_admin.get_object(request, unquote(object_id))
    if object_id is None:
        may_save = model_admin.has_add_permission(request)
    else:
        may_save = row is not None and model_admin.has_change_permission(request, row)
    if not may_save:
        return None
    form_class: Any = model_admin.get_form(
        request, row, change=row is not None, fields=flatten_fieldsets(model_admin.get_fieldsets(request, row))
    )
    form = form_class(request.POST, instance=row)
    form.handshaken = Handshake()
    if not form.is_valid() or not form.asks_for_handshake:
        return None
    # The form has written into its row.
    current = None if row is None else Subscription.objects.get(pk=row.pk)
    url = form.values["url"] if current is None or "url" in form.values else current.url
    organization_id = form.cleaned_data["organization"].pk if current is None else current.organization_id
    try:
        handshake.shake_hands(organization_id, url, form.values, current)
    except handshake.HandshakeFailed as error:
        return Handshake(f"The endpoint didn't confirm. {error.sentence} Nothing was saved.")
    except probes.TooManyProbes as error:
        return Handshake(f"{error.sentence} Wait {error.retry_after} seconds.")
    return Handshake()
