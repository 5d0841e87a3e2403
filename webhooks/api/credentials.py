"""The credentials of a subscription, as the API takes and shows them: secrets, authorization, client certificate."""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings
from django.utils import timezone
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from core.serializers import StrictCharField, StrictChoiceField, StrictSerializer
from webhooks.api.header_rules import HEADER_NAME, name_error
from webhooks.destinations.http.auth import AUTH_TYPES, Auth, Basic, Bearer, ClientCredentials
from webhooks.destinations.http.client_certificates import (
    MAX_PEM_CHARACTERS,
    CertificateError,
    ClientCertificate,
    check_client_certificate,
)
from webhooks.destinations.http.egress_policy import UrlError, check_url, normalize_url
from webhooks.destinations.http.signing import SecretType, secret_key
from webhooks.signing_secrets import StoredSecret

MAX_CREDENTIAL = 2_048
# An access token may hold a whole JWT.
MAX_TOKEN = 8_192
# The furthest time that `expires_at` may be.
MAX_SECRET_DAYS = 3_660
_TOKEN = re.compile(r"[\x21-\x7e]+")
_VISIBLE = re.compile(r"[^\x00-\x1f\x7f]*")
_CONFLICT = "conflicts with `auth`, which sets the header Authorization: use one of them"


class SecretField(StrictCharField):
    """A signing secret of the caller's own.  Errors never quote it."""

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        try:
            secret_key(text)
        except ValueError as error:
            raise serializers.ValidationError(str(error)) from None
        return text


_OWN_HELP = (
    "Your own secret: `whsec_` and the base64 of 24 to 64 bytes, or an ed25519 key, `whsk_` and the base64 of its 32 "
    "bytes, which its public key may follow. Without it a new one is made. It isn't repeated in the response."
)
TYPE_HELP = "What a new secret signs with: `hmac-sha256` (`v1`), or `ed25519` (`v1a`), verified with a public key."


def secret_fields() -> dict[str, serializers.Field[Any, Any, Any, Any]]:
    """Return the fields of a request that brings or makes a secret."""
    return {
        "secret": SecretField(required=False, max_length=200, write_only=True, help_text=_OWN_HELP),
        "secret_type": StrictChoiceField(
            choices=[one.value for one in SecretType], required=False, help_text=TYPE_HELP
        ),
    }


def check_secret_type(attrs: Mapping[str, Any]) -> None:
    """Refuse a type that isn't that of the secret.  Raises ValidationError."""
    if "secret" in attrs and "secret_type" in attrs:
        is_asymmetric = attrs["secret"].startswith("whsk_")
        if is_asymmetric != (attrs["secret_type"] == SecretType.ED25519):
            raise serializers.ValidationError({"secret_type": ["is not the type of `secret`; leave it out"]})


class EndField(serializers.DateTimeField):
    """When a secret stops signing: a time to come, or null for never."""

    def to_internal_value(self, value: Any) -> Any:
        if not isinstance(value, str):
            raise serializers.ValidationError("must be an ISO 8601 time such as 2027-01-31T12:00:00Z, or null")
        try:
            moment = super().to_internal_value(value)
        except OverflowError:
            raise serializers.ValidationError("must be a time in the next ten years") from None
        now = timezone.now()
        if moment <= now:
            raise serializers.ValidationError("must be in the future; to end a secret at once, delete it")
        if moment > now + datetime.timedelta(days=MAX_SECRET_DAYS):
            raise serializers.ValidationError("must be in the next ten years, or null for no end")
        return moment


class SecretAddSerializer(StrictSerializer):
    """The body of `POST /api/subscriptions/{id}/secrets`, which may be empty."""

    expires_at = EndField(
        required=False, allow_null=True, default=None, help_text="When it stops signing; null: never."
    )

    def get_fields(self) -> dict[str, Any]:
        return {**secret_fields(), **super().get_fields()}

    def validate(self, attrs: Any) -> Any:
        """Refuse a type that contradicts the secret."""
        check_secret_type(attrs)
        return attrs


class SecretChangeSerializer(StrictSerializer):
    """The body of `PATCH /api/subscriptions/{id}/secrets/{secret_id}`."""

    expires_at = EndField(allow_null=True, help_text="When it stops signing; null: never.")


class SecretSerializer(serializers.Serializer[StoredSecret]):
    """A signing secret, masked."""

    id = serializers.UUIDField(
        help_text="The secret's id, for `/api/subscriptions/{subscription_id}/secrets/{secret_id}`."
    )
    type = serializers.ChoiceField(
        choices=[one.value for one in SecretType],
        help_text="What it signs with: `hmac-sha256` makes `v1` signatures, `ed25519` makes `v1a` ones.",
    )
    masked = serializers.CharField(help_text="What stands for the secret: `whsec_***`, or `whsk_***` for ed25519.")
    public_key = serializers.CharField(
        allow_null=True, help_text="`whpk_…`: what receivers verify `v1a` signatures with; null for `hmac-sha256`."
    )
    created_at = serializers.DateTimeField(help_text="When it was added.")
    expires_at = serializers.DateTimeField(allow_null=True, help_text="When it stops signing; null: never.")


class SecretListSerializer(serializers.Serializer[Any]):
    """The secrets that sign, the current one first."""

    data = SecretSerializer(  # type: ignore[assignment]
        many=True, help_text="The secrets, the current one first."
    )


class NewSecretSerializer(SecretSerializer):
    """A signing secret that was just added."""

    # The row keeps it encrypted, so the view hands it over as `context={"secret": …}`.
    secret = serializers.SerializerMethodField(
        help_text="`whsec_…`: a new secret, shown once. Null for one of your own, and for ed25519, whose private key "
        "stays here."
    )

    def get_secret(self, secret: StoredSecret) -> str | None:
        shown: str | None = self.context["secret"]
        return shown


def shown_once(secret: str, given: Mapping[str, Any]) -> str | None:
    """Return what a response shows of a new secret: neither one that the caller brought nor a private key."""
    return None if not secret or "secret" in given or secret.startswith("whsk_") else secret


# --- authorization ----------------------------------------------------------------------------------


class _TokenUrlField(StrictCharField):
    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        try:
            url = normalize_url(text)
            check_url(url, settings.WEBHOOK_ALLOWED_SUBNETS, settings.WEBHOOK_ALLOWED_PORTS)
        except UrlError as error:
            raise serializers.ValidationError(str(error).replace("`auth`", "`client_id` and `client_secret`")) from None
        return url


def _text(most: int = MAX_CREDENTIAL, **options: Any) -> StrictCharField:
    return StrictCharField(max_length=most, trim_whitespace=False, validators=[_validate_visible], **options)


def _validate_visible(value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise serializers.ValidationError("holds a character that UTF-8 can't encode") from None
    if not _VISIBLE.fullmatch(value):
        raise serializers.ValidationError("must not contain control characters")


def _validate_no_colon(value: str) -> None:
    if ":" in value:
        raise serializers.ValidationError("must not contain a colon (RFC 7617)")


def _validate_token(value: str) -> None:
    if not _TOKEN.fullmatch(value):
        raise serializers.ValidationError("must be printable ASCII without spaces, and without `Bearer` before it")


class _BasicSerializer(StrictSerializer):
    username = StrictCharField(
        max_length=MAX_CREDENTIAL, trim_whitespace=False, allow_blank=True,
        validators=[_validate_visible, _validate_no_colon],
    )  # fmt: skip
    password = _text(allow_blank=True)


class _BearerSerializer(StrictSerializer):
    token = StrictCharField(max_length=MAX_TOKEN, trim_whitespace=False, validators=[_validate_token])


class _OauthSerializer(StrictSerializer):
    token_url = _TokenUrlField(max_length=2048, trim_whitespace=False)
    client_id = _text()
    client_secret = _text()
    scope = _text(required=False, allow_blank=True)
    audience = _text(required=False, allow_blank=True)
    client_authentication = serializers.ChoiceField(choices=["header", "body"], required=False)


_KINDS: dict[str, tuple[type[StrictSerializer], type[Auth]]] = {
    "basic": (_BasicSerializer, Basic),
    "bearer": (_BearerSerializer, Bearer),
    "oauth2": (_OauthSerializer, ClientCredentials),
}


def _object(name: str, required: list[str], **properties: Any) -> dict[str, Any]:
    kind = {"type": "string", "enum": [name], "description": "The kind of authorization."}
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": kind, **properties},
        "additionalProperties": False,
    }


def _string(description: str, most: int = MAX_CREDENTIAL, **more: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": most, "description": description, **more}


@extend_schema_field(
    {
        "oneOf": [
            _object(
                "basic",
                ["username", "password"],
                username=_string("The user's name."),
                password=_string("The user's password."),
            ),
            _object("bearer", ["token"], token=_string("Sent as `Authorization: Bearer`.", MAX_TOKEN)),
            _object(
                "oauth2",
                ["token_url", "client_id", "client_secret"],
                token_url=_string("Where tokens are asked for.", 2048, format="uri"),
                client_id=_string("The client's id.", minLength=1),
                client_secret=_string("The client's secret.", minLength=1),
                scope=_string("Scopes, separated by spaces."),
                audience=_string("For authorization servers that ask for it."),
                client_authentication=_string(
                    "Where the client's id and secret go in a token request.", enum=["header", "body"], default="header"
                ),
            ),
        ],
        "writeOnly": True,
        "description": "What authorizes each request to the endpoint: `basic`, `bearer`, or `oauth2` (client "
        "credentials; the token is kept until it expires). Encrypted at rest and never shown again: `auth_type` says "
        "which it is. Null for none.",
    }
)
class AuthField(serializers.Field[Auth | None, Any, Any, Any]):
    """The authorization of a subscription's requests."""

    def to_internal_value(self, data: Any) -> Auth:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object with a `type`, or null")
        kind = data.get("type")
        if not isinstance(kind, str) or kind not in _KINDS:
            expected = ", ".join(f"`{name}`" for name in AUTH_TYPES)
            raise serializers.ValidationError({"type": [f"must be one of {expected}"]})
        serializer_class, auth_class = _KINDS[kind]
        serializer = serializer_class(data={name: value for name, value in data.items() if name != "type"})
        serializer.is_valid(raise_exception=True)
        return auth_class(**serializer.validated_data)

    def to_representation(self, value: Any) -> Any:
        return None


# --- client certificates ----------------------------------------------------------------------------


@extend_schema_field(
    {
        "type": "object",
        "required": ["certificate", "private_key"],
        "properties": {
            "certificate": _string("The certificate and those that lead to its authority, in PEM.", MAX_PEM_CHARACTERS),
            "private_key": _string("Its private key in PEM, without a passphrase.", MAX_PEM_CHARACTERS),
        },
        "additionalProperties": False,
        "writeOnly": True,
        "description": "What connections present to the endpoint (mTLS). Encrypted at rest; the response shows "
        "`client_certificate` without the key. Null for none.",
    }
)
class ClientCertificateField(serializers.Field[ClientCertificate | None, Any, Any, Any]):
    """A client certificate with its key."""

    def to_internal_value(self, data: Any) -> ClientCertificate:
        if not isinstance(data, dict):
            raise serializers.ValidationError("must be an object with `certificate` and `private_key`, or null")
        serializer = _CertificateSerializer(data=data)
        serializer.is_valid(raise_exception=True)
        try:
            return check_client_certificate(**serializer.validated_data, now=timezone.now())
        except CertificateError as error:
            raise serializers.ValidationError({error.field: [str(error)]}) from None

    def to_representation(self, value: Any) -> Any:
        return None


class _CertificateSerializer(StrictSerializer):
    certificate = StrictCharField(max_length=MAX_PEM_CHARACTERS)
    private_key = StrictCharField(max_length=MAX_PEM_CHARACTERS)


class ShownCertificateSerializer(serializers.Serializer[Any]):
    """What is shown of a client certificate."""

    subject = serializers.CharField(help_text="Whose it is, as a distinguished name (RFC 4514).")
    issuer = serializers.CharField(help_text="Who issued it, as a distinguished name (RFC 4514).")
    fingerprint_sha256 = serializers.CharField(help_text="Of the certificate in DER, in hexadecimal.")
    not_before = serializers.DateTimeField(help_text="From when on it is valid.")
    expires_at = serializers.DateTimeField(
        help_text="The end of the first certificate of the chain that ends. From then on deliveries fail with "
        "`tls_failed`; give another one before."
    )


# --- the signature's second header ------------------------------------------------------------------


class SignatureHeaderField(StrictCharField):
    """The name of a header that repeats the signature, or nothing."""

    def to_internal_value(self, data: Any) -> str:
        name = super().to_internal_value(data)
        if name and (reason := name_error(name)):
            raise serializers.ValidationError(reason)
        if name.lower() == "authorization":
            raise serializers.ValidationError("can't be Authorization")
        return name


def credential_fields() -> dict[str, serializers.Field[Any, Any, Any, Any]]:
    """Return the fields of a request that makes or changes a subscription."""
    return {
        "auth": AuthField(required=False, allow_null=True, write_only=True),
        "client_certificate": ClientCertificateField(required=False, allow_null=True, write_only=True),
        "signature_header": SignatureHeaderField(
            required=False,
            allow_blank=True,
            max_length=100,
            help_text=f"A header that repeats `webhook-signature`, for receivers that read it from there "
            f"(`{HEADER_NAME.pattern}`). Empty for none.",
        ),
    }


def check_together(attrs: Mapping[str, Any], current: Any) -> None:
    """Refuse values that are valid alone but contradict other fields.

    current: the subscription that is changed, or None.  Raises ValidationError.
    """
    errors: dict[str, list[str]] = {}
    names = {name.lower() for name in attrs.get("headers", getattr(current, "header_names", ()))}
    has_auth = bool(attrs["auth"]) if "auth" in attrs else bool(getattr(current, "auth_type", ""))
    if has_auth and "authorization" in names:
        if "auth" in attrs:
            errors["auth"] = ["conflicts with the header Authorization in `headers`: use one of them"]
        elif "headers" in attrs:
            errors["headers"] = [_CONFLICT]
    repeated = attrs.get("signature_header", getattr(current, "signature_header", ""))
    if repeated and repeated.lower() in names:
        field = "signature_header" if "signature_header" in attrs else "headers"
        if field in attrs:
            errors[field] = [f"the header {repeated} would be sent twice, as `signature_header` and in `headers`"]
    has_certificate = (
        bool(attrs["client_certificate"])
        if "client_certificate" in attrs
        else bool(getattr(current, "client_certificate_details", None))
    )
    url = attrs.get("url", getattr(current, "url", ""))
    if has_certificate and url and not url.lower().startswith("https:"):
        field = "client_certificate" if "client_certificate" in attrs else "url"
        if field in attrs:
            errors[field] = ["a client certificate needs an https URL"]
    if errors:
        raise serializers.ValidationError(errors)
