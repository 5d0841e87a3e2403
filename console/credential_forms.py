"""The part of a subscription's form that holds its credentials: what was entered is never shown again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from django import forms

from webhooks.destinations.http.signing import SecretType


class WriteOnlyTextarea(forms.Textarea):
    """A text area that never repeats what was entered, not even beside an error."""

    def format_value(self, value: Any) -> str | None:
        return None


def _hidden(**options: Any) -> forms.CharField:
    """Return a field for one secret line."""
    widget = forms.PasswordInput(attrs={"size": 60, "autocomplete": "new-password"})
    return forms.CharField(required=False, strip=False, widget=widget, **options)


def _line(**options: Any) -> forms.CharField:
    return forms.CharField(required=False, widget=forms.TextInput(attrs={"size": 60, "autocomplete": "off"}), **options)


def _pem(label: str, note: str) -> forms.CharField:
    attrs = {"rows": 4, "cols": 70, "spellcheck": "false", "autocomplete": "off"}
    return forms.CharField(required=False, label=label, widget=WriteOnlyTextarea(attrs=attrs), help_text=note)


SECRET_TYPES = [(SecretType.HMAC.value, "HMAC-SHA256 (v1)"), (SecretType.ED25519.value, "ed25519 (v1a)")]
# Only for new subscriptions; afterward, actions change these.
ONLY_FOR_NEW = ("own_secret", "secret_type")
FIELDS = (
    "own_secret", "secret_type", "auth_kind", "auth_username", "auth_password", "auth_token", "auth_token_url",
    "auth_client_id", "auth_client_secret", "auth_scope", "auth_audience", "auth_client_authentication",
    "certificate", "certificate_key", "remove_certificate", "signature_header",
)  # fmt: skip
# Each field's name in the API, and the field that shows what is wrong with it.
API_FIELDS = {
    **{name: "auth" for name in FIELDS if name.startswith("auth_")},
    "certificate": "client_certificate",
    "certificate_key": "client_certificate",
    "remove_certificate": "client_certificate",
    "own_secret": "secret",
}
FORM_FIELDS = {"auth": "auth_kind", "client_certificate": "certificate", "secret": "own_secret"}
_MEMBERS = {
    "basic": ("username", "password"),
    "bearer": ("token",),
    "oauth2": ("token_url", "client_id", "client_secret", "scope", "audience", "client_authentication"),
}


class CredentialFields(forms.Form):
    """The fields of a subscription's credentials, for its form."""

    own_secret = _hidden(
        label="Your own secret",
        help_text="whsec_… (base64 of 24 to 64 bytes) or whsk_… (ed25519). Leave this empty for a new one.",
    )
    secret_type = forms.ChoiceField(
        label="Type of a new secret", choices=SECRET_TYPES, required=False, initial=SECRET_TYPES[0][0]
    )
    auth_kind = forms.ChoiceField(
        label="Authorization",
        required=False,
        choices=[
            ("", "keep as it is"), ("none", "none"), ("basic", "basic: user name and password"),
            ("bearer", "bearer: a token"), ("oauth2", "OAuth 2.0 client credentials"),
        ],
        help_text="Fill in what belongs to your choice. It is stored encrypted and never shown again.",
    )  # fmt: skip
    auth_username = _line(label="User name", help_text="Basic.")
    auth_password = _hidden(label="Password", help_text="Basic.")
    auth_token = _hidden(label="Token", help_text="Bearer.")
    auth_token_url = _line(label="Token URL", help_text="OAuth.")
    auth_client_id = _line(label="Client id", help_text="OAuth.")
    auth_client_secret = _hidden(label="Client secret", help_text="OAuth.")
    auth_scope = _line(label="Scope", help_text="OAuth, optional: separated by spaces.")
    auth_audience = _line(label="Audience", help_text="OAuth, optional.")
    auth_client_authentication = forms.ChoiceField(
        label="Client id and secret go into",
        required=False,
        choices=[("header", "the header"), ("body", "the body")],
        initial="header",
        help_text="OAuth.",
    )
    certificate = _pem(
        "Client certificate",
        "For mTLS: the certificate and those that lead to its authority, in PEM. Empty keeps what there is.",
    )
    certificate_key = _pem("Its private key", "In PEM, without a passphrase. Stored encrypted and never shown again.")
    remove_certificate = forms.BooleanField(label="Remove the client certificate", required=False)
    signature_header = _line(
        label="Second signature header", help_text="Repeats webhook-signature, for receivers that read it from there."
    )


def credential_values(cleaned: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was entered, as the API takes it, without what stays as it is."""
    values: dict[str, Any] = {}
    kind = cleaned.get("auth_kind")
    if kind == "none":
        values["auth"] = None
    elif kind:
        optional = {"scope", "audience", "client_authentication"}
        entered = {name: cleaned.get(f"auth_{name}", "") for name in _MEMBERS[kind]}
        values["auth"] = {"type": kind, **{k: value for k, value in entered.items() if value or k not in optional}}
    if cleaned.get("remove_certificate"):
        values["client_certificate"] = None
    elif cleaned.get("certificate") or cleaned.get("certificate_key"):
        pair = {"certificate": cleaned.get("certificate"), "private_key": cleaned.get("certificate_key")}
        values["client_certificate"] = {name: text for name, text in pair.items() if text}
    if "signature_header" in cleaned:
        values["signature_header"] = cleaned["signature_header"]
    if cleaned.get("own_secret"):
        values["secret"] = cleaned["own_secret"]
    elif cleaned.get("secret_type"):
        values["secret_type"] = cleaned["secret_type"]
    return values
