"""The portal's forms.  The API's serializers validate an endpoint, so that both refuse the same."""

from __future__ import annotations

import datetime
from typing import Any

from django import forms
from django.utils import timezone
from rest_framework import serializers

from events import event_types
from portal import texts
from portal.models import PortalSession
from webhooks.api.subscription_serializers import (
    ReasonSerializer,
    SubscriptionChangeSerializer,
    SubscriptionCreateSerializer,
)
from webhooks.form_values import error_texts, read_headers
from webhooks.models import FORMATS, Subscription

EVERYTHING = "*"
# How many types of the catalog are offered as checkboxes; the others can be typed.
MOST_TYPES = 200
_FORM_FIELDS = {"event_types": "other_types", "headers": "headers_text"}
_FORMATS = {
    "standard": "Standard Webhooks",
    "cloudevents": "CloudEvents 1.0",
    "cloudevents-binary": "CloudEvents 1.0, binary",
    "legacy": "Legacy: event_id, event_type, payload, created_at",
    "raw": "Only the event's data",
    "transform": "Custom expression",
}


class EndpointForm(forms.Form):
    """An endpoint.  After validation `values` holds what has changed, as the API's serializers return it."""

    url = forms.CharField(
        label="URL", max_length=2048, strip=False,
        help_text="Where we send webhooks, as POST requests, such as https://example.com/webhooks.",
        widget=forms.TextInput(attrs={"inputmode": "url", "autocomplete": "off", "spellcheck": "false"}),
        error_messages={"required": "Enter the URL of your endpoint."},
    )  # fmt: skip
    description = forms.CharField(
        label="Description",
        required=False,
        max_length=500,
        help_text="A note for yourself, such as what the endpoint is for.",
    )
    which = forms.ChoiceField(
        label="Events",
        choices=[("all", "All events"), ("some", "Selected events")],
        widget=forms.RadioSelect,
        initial="all",
    )
    types = forms.MultipleChoiceField(label="Event types", required=False, widget=forms.CheckboxSelectMultiple)
    other_types = forms.CharField(
        label="Event types by name", required=False, widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
        help_text="One per line: a type such as order.created, or a beginning, such as order.*, for all types that "
        "start with it.",
    )  # fmt: skip
    headers_text = forms.CharField(
        label="Headers", required=False, widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
        help_text="One per line, as “Authorization: Bearer …”. They are stored encrypted and never shown again. What "
        "you enter replaces all of them; leave this empty to keep them.",
    )  # fmt: skip
    remove_headers = forms.BooleanField(label="Remove all headers", required=False)
    deliveries_per_second = forms.FloatField(
        label="Maximum webhooks per second",
        required=False,
        help_text="Any more wait their turn. Leave this empty for no limit.",
    )
    max_in_flight = forms.IntegerField(
        label="Maximum requests at a time",
        required=False,
        help_text="How many requests we send at the same time. Leave this empty for the default.",
    )
    format = forms.ChoiceField(
        label="Format of the body", choices=[(name, _FORMATS.get(name, name)) for name in FORMATS], required=False,
        initial="standard",
        help_text="How an event looks in the request; we recommend Standard Webhooks. Your code reads it, so change "
        "both at the same time.",
    )  # fmt: skip
    transform = forms.CharField(
        label="Expression", required=False, max_length=4096,
        widget=forms.Textarea(attrs={"rows": 3, "spellcheck": "false"}),
        help_text="For the format “Custom expression”: JMESPath over the standard body, such as "
        "{text: join(' ', [type, data.total])}.",
    )  # fmt: skip
    handshake = forms.BooleanField(
        label="Confirm with the endpoint first", required=False,
        help_text="We send a POST with a random X-Hook-Secret header. The endpoint must respond with a 2xx status and "
        "repeat that header. Otherwise, nothing is saved.",
    )  # fmt: skip

    def __init__(self, portal: PortalSession, subscription: Subscription | None = None, data: Any = None) -> None:
        initial: dict[str, Any] = {}
        catalog = event_types.of_organization(portal.organization_id).filter(archived_at=None).order_by("name")
        names = list(catalog.values_list("name", flat=True)[:MOST_TYPES])
        if subscription is not None:
            wanted = subscription.event_types
            initial = {
                "url": subscription.url, "description": subscription.description,
                "which": "all" if EVERYTHING in wanted else "some",
                "types": [name for name in wanted if name in names],
                "other_types": "\n".join(one for one in wanted if one not in names and one != EVERYTHING),
                "deliveries_per_second": subscription.deliveries_per_second,
                "max_in_flight": subscription.max_in_flight, "format": subscription.format,
                "transform": subscription.transform,
            }  # fmt: skip
        super().__init__(data, initial=initial, auto_id="id_%s")
        self.subscription = subscription
        self.values: dict[str, Any] = {}
        self.fields["types"].choices = [(name, name) for name in names]  # type: ignore[attr-defined]
        if not names:
            del self.fields["types"]
        if subscription is None or not subscription.header_names:
            del self.fields["remove_headers"]
        self._describe_fields()

    def _describe_fields(self) -> None:
        """Name each field's help and error to screen readers, and put the focus on the first that is wrong."""
        first = next((name for name in self.fields if self.is_bound and name in self.errors), "")
        for name, field in self.fields.items():
            described = [f"id_{name}_help"] if field.help_text else []
            if name in self.errors if self.is_bound else False:
                described.append(f"id_{name}_error")
                field.widget.attrs["aria-invalid"] = "true"
            field.widget.attrs.pop("aria-describedby", None)  # so that it comes last
            field.widget.attrs.pop("autofocus", None)
            if name == first:
                field.widget.attrs["autofocus"] = True
            if described:
                field.widget.attrs["aria-describedby"] = " ".join(described)

    def refuse_url(self, text: str) -> None:
        """Show an error at the URL that comes after validation."""
        self.add_error("url", text)
        self._describe_fields()

    @property
    def handshake_done(self) -> dict[str, Any]:
        """What the audit log keeps of the handshake."""
        return {"handshake": True} if self.cleaned_data.get("handshake") else {}

    @property
    def is_advanced(self) -> bool:
        """Return whether one of the fields under “Advanced” has an error or a value, so that they are shown."""
        names = ("headers_text", "remove_headers", "deliveries_per_second", "max_in_flight", "format", "transform")
        if self.is_bound:
            return any(name in self.errors for name in names) or bool(self.cleaned_data.get("handshake"))
        row = self.subscription
        if row is None:
            return False
        limits = (row.deliveries_per_second, row.max_in_flight)
        return bool(row.header_names or row.transform or row.format != "standard" or any(limits))

    def clean_headers_text(self) -> dict[str, str]:
        """Return the headers by name."""
        return read_headers(self.cleaned_data["headers_text"])

    def clean_transform(self) -> str:
        """Return the expression with the line endings that are stored: browsers send CRLF."""
        return str(self.cleaned_data["transform"]).replace("\r\n", "\n")

    def clean(self) -> dict[str, Any]:
        """Validate with the API's serializer and show its errors at the fields that they belong to."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        wanted: dict[str, Any] = {name: cleaned[name] for name in ("url", "description") if name in cleaned}
        for name in ("deliveries_per_second", "max_in_flight"):
            if name in cleaned and (cleaned[name] is not None or self.subscription is not None):
                wanted[name] = cleaned[name]
        wanted |= {name: cleaned[name] for name in ("format", "transform") if cleaned.get(name)}
        if cleaned.get("which") == "all":
            wanted["event_types"] = [EVERYTHING]
        elif "which" in cleaned:
            chosen = [*cleaned.get("types", []), *cleaned.get("other_types", "").split()]
            if not chosen:
                self.add_error("other_types", "Choose at least one event type, or all events.")
            # So that the other fields' errors are shown, too.
            wanted["event_types"] = chosen or [EVERYTHING]
        if cleaned.get("remove_headers"):
            wanted["headers"] = {}
        elif cleaned.get("headers_text"):
            wanted["headers"] = cleaned["headers_text"]
        if self.subscription is not None:
            # Only what has changed: a new URL, for one, clears the record of failures at the old one.
            wanted = {name: value for name, value in wanted.items() if self._has_changed(name, value)}
            if not wanted:  # which the API refuses, because it would be a mistake there
                return cleaned
        serializer: serializers.Serializer[Any] = (
            SubscriptionCreateSerializer(data=wanted)
            if self.subscription is None
            else SubscriptionChangeSerializer(data=wanted, partial=True, context={"subscription": self.subscription})
        )
        if not serializer.is_valid():
            for name, reasons in serializer.errors.items():
                field = _FORM_FIELDS.get(name, name)
                if field not in self.errors:
                    messages = [texts.of_an_error(text) for text in error_texts(reasons)]
                    self.add_error(field if field in self.fields else None, messages)
            return cleaned
        self.values = dict(serializer.validated_data)
        return cleaned

    def _has_changed(self, name: str, value: Any) -> bool:
        if name == "event_types":
            return sorted(value) != sorted(self.subscription.event_types)  # type: ignore[union-attr]
        return name == "headers" or getattr(self.subscription, name) != value


class DisableForm(forms.Form):
    """Why an endpoint is disabled."""

    reason = forms.CharField(
        label="Reason",
        required=False,
        max_length=300,
        help_text="For anybody who wonders later. You can leave it empty.",
    )

    def clean_reason(self) -> str:
        """Return the reason, if the API would take it."""
        serializer = ReasonSerializer(data={"reason": self.cleaned_data["reason"]})
        if not serializer.is_valid():
            raise forms.ValidationError(error_texts(serializer.errors["reason"]))
        return str(serializer.validated_data["reason"]).strip()


OVERLAPS = {"0": "immediately", "3600": "in 1 hour", "86400": "in 24 hours", "604800": "in 7 days"}


class RotateForm(forms.Form):
    """How long the old secret keeps signing."""

    overlap = forms.ChoiceField(
        label="The old secret stops working", choices=list(OVERLAPS.items()), initial="86400", widget=forms.RadioSelect
    )
    end_earlier = forms.BooleanField(
        label="Also end secrets from earlier rotations now",
        required=False,
        help_text="Use this if a secret has leaked.",
    )


class SinceForm(forms.Form):
    """Since when to look for what is missing."""

    since = forms.DateTimeField(
        label="Since (UTC)",
        input_formats=["%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S"],
        widget=forms.DateTimeInput(attrs={"type": "datetime-local"}, format="%Y-%m-%dT%H:%M"),
        help_text="A time before the first webhook that you're missing.",
        error_messages={"required": "Enter a time.", "invalid": "Enter a time such as 2026-01-31T12:00."},
    )

    def clean_since(self) -> datetime.datetime:
        """Return the time, which isn't in the future."""
        since: datetime.datetime = self.cleaned_data["since"]
        if since > timezone.now():
            raise forms.ValidationError("Enter a time in the past.")
        return since
