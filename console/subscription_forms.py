"""The admin's forms for subscriptions, which the API's serializers validate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import orjson
from django import forms
from django.conf import settings
from rest_framework import serializers

from console import credential_forms
from console.credential_forms import CredentialFields, credential_values
from webhooks import subscriptions
from webhooks.api.subscription_serializers import SubscriptionChangeSerializer, SubscriptionCreateSerializer
from webhooks.form_values import error_texts, read_headers
from webhooks.inboxes import MAX_NAME, find, is_inbox
from webhooks.models import FORMATS, DestinationKind, OrderedOnFailure, Subscription
from webhooks.routing.filters import MAX_CHARACTERS

if TYPE_CHECKING:
    _SubscriptionForm = forms.ModelForm[Subscription]
else:
    _SubscriptionForm = forms.ModelForm

# Fields that an inbox doesn't have: nothing is sent to it.
ONLY_OF_ENDPOINTS = (
    "url", "headers_text", "remove_headers", "max_in_flight", "deliveries_per_second", "format", "transform",
    "ordered", "ordered_attempts", "ordered_on_failure", "handshake", *credential_forms.FIELDS,
)  # fmt: skip
_FORM_FIELDS = {
    "event_types": "event_types_text",
    "headers": "headers_text",
    "filter": "filter_text",
    "channels": "channels_text",
    "inbox": "inbox_name",
    **credential_forms.FORM_FIELDS,
}
_API_FIELDS = {
    "event_types_text": "event_types",
    "filter_text": "filter",
    "channels_text": "channels",
    "headers_text": "headers",
    "remove_headers": "headers",
    **credential_forms.API_FIELDS,
}


@dataclass(frozen=True)
class Handshake:
    """What came of the handshake that was made for a form.  refusal: a sentence, empty if the endpoint confirmed."""

    refusal: str = ""


class SubscriptionForm(CredentialFields, _SubscriptionForm):
    """The fields of a subscription.  After validation `values` holds them as the API's serializers return them."""

    url = forms.CharField(
        max_length=2048, strip=False, label="URL", required=False, widget=forms.TextInput(attrs={"size": 100})
    )
    inbox_name = forms.CharField(
        label="Or inbox", required=False, max_length=MAX_NAME,
        help_text="Instead of a URL, the name of an inbox: nothing is sent, and events wait until they are fetched.",
    )  # fmt: skip
    event_types_text = forms.CharField(
        label="Event types", widget=forms.Textarea(attrs={"rows": 4, "cols": 60}),
        help_text="One per line: an exact type (order.created), a prefix (order.*) or * for all types.",
    )  # fmt: skip
    filter_text = forms.CharField(
        label="Filter", required=False, max_length=4 * MAX_CHARACTERS,
        widget=forms.Textarea(attrs={"rows": 4, "cols": 60, "spellcheck": "false"}),
        help_text="JSON: only events whose data meets these conditions, such as "
        '{"customer": {"country": "DE"}, "total": {"$gte": 100}}. Leave this empty for all events of the types.',
    )  # fmt: skip
    channels_text = forms.CharField(
        label="Channels", required=False, widget=forms.TextInput(attrs={"size": 60}),
        help_text="Separated by spaces: only events that have one of these channels. Leave this empty for all events.",
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

    ordered_on_failure = forms.ChoiceField(
        choices=OrderedOnFailure.choices, required=False, initial=OrderedOnFailure.SKIP, label="Ordered: on failure",
        help_text="When a delivery with an ordering key has failed: “skip” goes on with the next one of its key, "
        "“block” waits until the failed one is retried.",
    )  # fmt: skip

    is_operational = forms.BooleanField(
        label="Operational", required=False,
        help_text="It receives operational events, about the organization's endpoints and keys, and no others. The "
        "event types are then triggers.endpoint.failing and its like, or *.",
    )  # fmt: skip

    handshake = forms.BooleanField(
        label="Handshake", required=False,
        help_text="Before anything is stored, send the endpoint a request with X-Hook-Secret, which it must repeat. "
        "Zapier and others don't support it.",
    )  # fmt: skip

    class Meta:
        model = Subscription
        fields = (
            "organization", "url", "description", "max_in_flight", "deliveries_per_second", "format", "transform",
            "signature_header", "ordered", "ordered_attempts", "ordered_on_failure",
        )  # fmt: skip

    # What came of the handshake, for a form that asks for one: it is made outside of the transaction that this form is
    # saved in, and this class is then one of that request's own.  None: it hasn't been made.
    handshaken: ClassVar[Handshake | None] = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.values: dict[str, Any] = {}
        self.asks_for_handshake = False
        if not self.instance._state.adding and is_inbox(self.instance):
            for name in ONLY_OF_ENDPOINTS:
                self.fields.pop(name, None)
        if not self.instance._state.adding:
            for name in ("inbox_name", *credential_forms.ONLY_FOR_NEW, "is_operational"):
                self.fields.pop(name, None)
        if not self.instance._state.adding and "event_types_text" in self.fields:
            self.initial["event_types_text"] = "\n".join(self.instance.event_types)
        self.initial["channels_text"] = " ".join(self.instance.channels)
        if self.instance.filter is not None:
            self.initial["filter_text"] = json.dumps(self.instance.filter, indent=2, ensure_ascii=False)

    def clean_filter_text(self) -> Any:
        """Return the filter's conditions, None for none."""
        text = self.cleaned_data["filter_text"].strip()
        try:
            return orjson.loads(text) if text else None
        except orjson.JSONDecodeError as error:
            raise forms.ValidationError(f"Not valid JSON: {error}") from None

    def clean_headers_text(self) -> dict[str, str]:
        """Return the headers by name."""
        return read_headers(self.cleaned_data["headers_text"])

    def clean(self) -> dict[str, Any]:
        """Validate what is asked for with the API's serializer, and show its errors at the fields they belong to."""
        cleaned: dict[str, Any] = super().clean() or self.cleaned_data
        adding = self.instance._state.adding
        if cleaned.get("url") == "" and not cleaned.get("inbox_name"):
            self.add_error("url", "Enter a URL, or the name of an inbox." if adding else "This field is required.")
        wanted = self._values_for_api(cleaned)
        if self.errors or not (adding or wanted):  # only the API refuses a request that changes nothing
            return cleaned
        serializer: serializers.Serializer[Any] = (
            SubscriptionCreateSerializer(data=wanted)
            if adding
            else SubscriptionChangeSerializer(
                data=wanted, partial=True, context={"subscription": self.instance, "may_be_empty": True}
            )
        )
        if serializer.is_valid():
            self.values = dict(serializer.validated_data)
            self._check_handshake()
            self._check_organization(cleaned)
            return cleaned
        for name, reasons in serializer.errors.items():
            field = _FORM_FIELDS.get(name, name)
            self.add_error(field if field in self.fields else None, error_texts(reasons))
        return cleaned

    def _values_for_api(self, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the form asks for as a request to the API would: of a subscription that exists, the changes."""
        adding = self.instance._state.adding
        wanted: dict[str, Any] = {
            name: cleaned[name]
            for name in ("url", "description", "max_in_flight", "deliveries_per_second", "ordered", "ordered_attempts")
            if name in cleaned and not (adding and cleaned[name] is None)
        }
        if adding and cleaned.get("is_operational"):
            wanted["operational"] = True
        # A script may post a form without these fields; they stay as they are.
        if cleaned.get("ordered_on_failure"):
            wanted["ordered_on_failure"] = cleaned["ordered_on_failure"]
        if cleaned.get("format"):
            wanted["format"] = cleaned["format"]
        if "transform" in self.data and "transform" in cleaned:
            wanted["transform"] = cleaned["transform"]
        if "filter_text" in self.data and "filter_text" in cleaned:
            wanted["filter"] = cleaned["filter_text"]
        if "channels_text" in self.data and "channels_text" in cleaned:
            wanted["channels"] = cleaned["channels_text"].split()
        if "event_types_text" in cleaned:
            wanted["event_types"] = cleaned["event_types_text"].split()
        if cleaned.get("remove_headers"):
            wanted["headers"] = {}
        elif cleaned.get("headers_text"):
            wanted["headers"] = cleaned["headers_text"]
        if cleaned.get("handshake"):
            wanted["handshake"] = True
        wanted |= credential_values({name: value for name, value in cleaned.items() if name in self.data})
        changed = {_API_FIELDS.get(name, name) for name in self.changed_data}
        if cleaned.get("inbox_name"):
            # What is left empty isn't asked of an inbox; what isn't is refused.
            of_endpoints = {_API_FIELDS.get(name, name) for name in ONLY_OF_ENDPOINTS}
            wanted = {name: value for name, value in wanted.items() if name not in of_endpoints or name in changed}
            wanted |= {"kind": DestinationKind.INBOX.value, "inbox": cleaned["inbox_name"]}
        if not adding:
            # Only what was changed: a new URL, for one, clears the record of failures at the old one.
            wanted = {name: value for name, value in wanted.items() if name in changed}
        return wanted

    def _check_handshake(self) -> None:
        """Add an error if the form asks for a handshake that wasn't made or wasn't confirmed."""
        self.asks_for_handshake = self.values.pop("handshake", False)
        if not self.asks_for_handshake:
            return
        if self.handshaken is None:
            self.add_error("handshake", "It wasn't made, because something else changed meanwhile. Save again.")
        elif self.handshaken.refusal:
            self.add_error("url", self.handshaken.refusal)

    def _check_organization(self, cleaned: Mapping[str, Any]) -> None:
        """Add an error if the organization has as many subscriptions as it may, or an inbox of this name."""
        organization = cleaned.get("organization")
        if organization is None:
            return
        has_all = subscriptions.of_organization(organization.pk).count() >= settings.MAX_SUBSCRIPTIONS
        if self.instance._state.adding and has_all:
            self.add_error("organization", "The organization has reached its limit of subscriptions.")
        if cleaned.get("inbox_name") and find(organization.pk, cleaned["inbox_name"]) is not None:
            self.add_error("inbox_name", "The organization has an inbox of this name.")
