"""The admin's forms for subscriptions, which the API's serializers validate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django import forms
from django.conf import settings
from rest_framework import serializers

from webhooks import subscriptions
from webhooks.api.serializers import SubscriptionChangeSerializer, SubscriptionCreateSerializer
from webhooks.inboxes import is_inbox
from webhooks.models import FORMATS, Subscription

if TYPE_CHECKING:
    _SubscriptionForm = forms.ModelForm[Subscription]
else:
    _SubscriptionForm = forms.ModelForm

# Fields that an inbox doesn't have: nothing is sent to it.
ONLY_OF_ENDPOINTS = (
    "url", "headers_text", "remove_headers", "max_in_flight", "deliveries_per_second", "format", "transform",
)  # fmt: skip
_FORM_FIELDS = {"event_types": "event_types_text", "headers": "headers_text"}
_API_FIELDS = {"event_types_text": "event_types", "headers_text": "headers", "remove_headers": "headers"}


def read_headers(text: str) -> dict[str, str]:
    """Return headers from lines of `Name: value`.  Raises ValidationError for any other line."""
    headers: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        name, colon, value = line.partition(":")
        if not colon:
            raise forms.ValidationError(f"Line {number} must have the form “Name: value”.")
        if name.strip() in headers:
            raise forms.ValidationError(f"Line {number} repeats a header.")
        headers[name.strip()] = value.strip()
    return headers


class SubscriptionForm(_SubscriptionForm):
    """The fields of a subscription.  After validation `values` holds them as the API's serializers return them."""

    url = forms.CharField(max_length=2048, strip=False, label="URL", widget=forms.TextInput(attrs={"size": 100}))
    event_types_text = forms.CharField(
        label="Event types", widget=forms.Textarea(attrs={"rows": 4, "cols": 60}),
        help_text="One per line: an exact type (order.created), a prefix (order.*) or * for all types.",
    )  # fmt: skip
    headers_text = forms.CharField(
        label="Custom headers", required=False, widget=forms.Textarea(attrs={"rows": 3, "cols": 60}),
        help_text="One per line, as “Name: value”. Values are stored encrypted and never shown again. What you enter "
        "replaces all custom headers; leave this empty to keep them.",
    )  # fmt: skip
    remove_headers = forms.BooleanField(label="Remove all custom headers", required=False)

    format = forms.ChoiceField(
        choices=[(name, name) for name in FORMATS], required=False, initial="standard",
        help_text="What the body of a request looks like. All are signed in the same way.",
    )  # fmt: skip
    transform = forms.CharField(
        label="Transform", required=False, max_length=4096,
        widget=forms.Textarea(attrs={"rows": 3, "cols": 60, "spellcheck": "false"}),
        help_text="For the format “transform”: a JMESPath expression over the standard body, such as "
        "{text: join(' ', [type, data.total])}. A delivery for which it fails is not sent.",
    )  # fmt: skip

    class Meta:
        model = Subscription
        fields = (
            "organization", "url", "description", "max_in_flight", "deliveries_per_second", "format", "transform",
        )  # fmt: skip

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: dict[str, Any] = {}
        if not self.instance._state.adding and is_inbox(self.instance):
            for name in ONLY_OF_ENDPOINTS:
                self.fields.pop(name, None)
        if not self.instance._state.adding and "event_types_text" in self.fields:
            self.initial["event_types_text"] = "\n".join(self.instance.event_types)

    def clean_headers_text(self) -> dict[str, str]:
        """Return the headers by name."""
        return read_headers(self.cleaned_data["headers_text"])

    def clean(self) -> dict[str, Any]:
        """Validate with the API's serializer and show its errors at the fields they belong to."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        adding = self.instance._state.adding
        wanted: dict[str, Any] = {
            name: cleaned[name]
            for name in ("url", "description", "max_in_flight", "deliveries_per_second")
            if name in cleaned and not (adding and cleaned[name] is None)
        }
        # A form without them, of a script, leaves them as they are.
        if cleaned.get("format"):
            wanted["format"] = cleaned["format"]
        if "transform" in self.data and "transform" in cleaned:
            wanted["transform"] = cleaned["transform"]
        if "event_types_text" in cleaned:
            wanted["event_types"] = cleaned["event_types_text"].split()
        if cleaned.get("remove_headers"):
            wanted["headers"] = {}
        elif cleaned.get("headers_text"):
            wanted["headers"] = cleaned["headers_text"]
        if not adding:
            # Only what was changed: a new URL, for one, clears the record of failures at the old one.
            given = {_API_FIELDS.get(name, name) for name in self.changed_data}
            wanted = {name: value for name, value in wanted.items() if name in given}
        if self.errors:
            return cleaned
        serializer: serializers.Serializer[Any] = (
            SubscriptionCreateSerializer(data=wanted)
            if adding
            else SubscriptionChangeSerializer(
                data=wanted, partial=True, context={"subscription": self.instance, "may_be_empty": True}
            )
        )
        if not serializer.is_valid():
            for name, reasons in serializer.errors.items():
                field = _FORM_FIELDS.get(name, name)
                self.add_error(field if field in self.fields else None, _texts(reasons))
            return cleaned
        self.values = dict(serializer.validated_data)
        organization = cleaned.get("organization")
        if (
            adding
            and organization
            and subscriptions.of_organization(organization.pk).count() >= settings.MAX_SUBSCRIPTIONS
        ):
            self.add_error("organization", "The organization has reached its limit of subscriptions.")
        return cleaned


def _texts(reasons: Any) -> list[str]:
    """Return the serializer's errors, however nested, as a list of texts."""
    if isinstance(reasons, dict):
        return [f"{name}: {text}" if name else text for name, inner in reasons.items() for text in _texts(inner)]
    if isinstance(reasons, list | tuple):
        return [text for inner in reasons for text in _texts(inner)]
    return [str(reasons)]
