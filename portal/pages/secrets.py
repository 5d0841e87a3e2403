"""Rotating an endpoint's secret; the response shows the new one, once."""

from __future__ import annotations

import datetime
import uuid

from django.db import transaction
from django.http import Http404, HttpRequest, HttpResponse

from portal.forms import OVERLAPS, RotateForm
from portal.pages.endpoints import EndpointPage, public_key
from portal.web import NotAllowed
from webhooks import subscriptions
from webhooks.display.formatting import format_time
from webhooks.models import Subscription
from webhooks.signing_secrets import MAX_PREVIOUS_SECRETS, TooManySecrets


class RotateView(EndpointPage):
    """Asks how long the old secret keeps signing, and rotates it."""

    is_only_for_changes = True

    def get(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        return self.page("rotate.html", row=self.own_endpoint(endpoint_id), form=RotateForm())

    def post(self, request: HttpRequest, endpoint_id: uuid.UUID) -> HttpResponse:
        row = self.own_endpoint(endpoint_id)
        form = RotateForm(request.POST)
        if not form.is_valid():
            return self.page("rotate.html", 422, row=row, form=form)
        overlap, end_earlier = form.cleaned_data["overlap"], form.cleaned_data["end_earlier"]
        try:
            with transaction.atomic():
                secret = subscriptions.rotate_secret(
                    row, datetime.timedelta(seconds=int(overlap)), end_earlier=end_earlier
                )
                detail = {"overlap_seconds": int(overlap), "end_earlier_secrets": end_earlier}
                self.record("subscription.rotate_secret", row.id, detail, name=row.url)
        except TooManySecrets as error:
            first = f", the first until {format_time(error.ends_at)} UTC" if error.ends_at else ""
            raise NotAllowed(
                "Too many secrets are in use",
                f"{MAX_PREVIOUS_SECRETS} other secrets sign as well{first}. End earlier secrets now, or rotate later.",
            ) from None
        except Subscription.DoesNotExist:
            raise Http404 from None
        return self.page(
            "secret.html", row=row, secret=secret, is_new=False, public_key=public_key(row),
            has_overlap=overlap != "0", old_stops=OVERLAPS[overlap],
        )  # fmt: skip
