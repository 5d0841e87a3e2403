"""How a request is authorized to the endpoint: basic, bearer, or a token of OAuth 2.0, sealed at rest."""

from __future__ import annotations

import base64
from typing import Literal

import msgspec

from core.encryption import decrypt, encrypt


class _Secret(msgspec.Struct, frozen=True):
    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"  # the members are secret and must not reach a log


class Basic(_Secret, frozen=True, tag_field="type", tag="basic"):
    """A user name and a password (RFC 7617)."""

    username: str
    password: str


class Bearer(_Secret, frozen=True, tag_field="type", tag="bearer"):
    """A token that doesn't change (RFC 6750)."""

    token: str


class ClientCredentials(_Secret, frozen=True, tag_field="type", tag="oauth2"):
    """The credentials with which a token is requested (RFC 6749 §4.4).

    client_authentication: whether the client's id and secret go into the header or into the body.
    """

    token_url: str
    client_id: str
    client_secret: str
    scope: str = ""
    audience: str = ""
    client_authentication: Literal["header", "body"] = "header"


Auth = Basic | Bearer | ClientCredentials

AUTH_TYPES = ("basic", "bearer", "oauth2")
_decoder: msgspec.json.Decoder[Auth] = msgspec.json.Decoder(Auth)


def type_of_auth(auth: Auth) -> str:
    """Return the name of the kind, as the API has it."""
    return {Basic: "basic", Bearer: "bearer", ClientCredentials: "oauth2"}[type(auth)]


def authorization_of(auth: Basic | Bearer) -> str:
    """Return the value of the `Authorization` header."""
    if isinstance(auth, Bearer):
        return f"Bearer {auth.token}"
    return "Basic " + base64.b64encode(f"{auth.username}:{auth.password}".encode()).decode()


def seal_auth(auth: Auth) -> str:
    """Return it encrypted, as text."""
    return encrypt(msgspec.json.encode(auth).decode())


def open_auth(sealed: str) -> Auth | None:
    """Return what `seal_auth` was given; None for nothing.  Raises DecryptionError if no key fits, or ValueError."""
    if not sealed:
        return None
    try:
        return _decoder.decode(decrypt(sealed))
    except msgspec.DecodeError:
        raise ValueError("not an authorization") from None
