"""The credentials with which requests are authorized at an endpoint, as people give them and as encrypted columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from webhooks.destinations.http.auth import Auth, seal_auth, type_of_auth
from webhooks.destinations.http.client_certificates import ClientCertificate, seal_client_certificate
from webhooks.destinations.http.endpoint import seal_headers


class Credentials(TypedDict, total=False):
    """Credentials of a subscription, for its `create` and `change`; None removes one."""

    auth: Auth | None
    client_certificate: ClientCertificate | None
    signature_header: str


def with_columns(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values with `headers`, `auth`, and `client_certificate` as their columns hold them."""
    fields = dict(values)
    if "headers" in fields:
        headers = fields.pop("headers")
        fields["encrypted_headers"] = seal_headers(headers)
        fields["header_names"] = sorted(headers)
    if "auth" in fields:
        auth: Auth | None = fields.pop("auth")
        fields["encrypted_auth"] = seal_auth(auth) if auth else ""
        fields["auth_type"] = type_of_auth(auth) if auth else ""
    if "client_certificate" in fields:
        certificate: ClientCertificate | None = fields.pop("client_certificate")
        fields["encrypted_client_certificate"] = seal_client_certificate(certificate) if certificate else ""
        fields["client_certificate_details"] = certificate.details if certificate else None
    return fields
