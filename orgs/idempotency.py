"""`Idempotency-Key` (draft-ietf-httpapi-idempotency-key): a request that is sent again isn't served again.

A key belongs to an organization.  A request with a key and the row that keeps its response are one transaction, which
holds an advisory lock on the key.  So a crash leaves both or neither, no row says "running", and other requests don't
wait for a running one.  Only what succeeded is kept.  A request that is refused has changed nothing, and its key is
free again.

`idempotent` is for Django's views; `events.idempotent_commit` does the same for the front door.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from django.http import HttpResponse
from django.utils.crypto import salted_hmac
from psycopg.rows import class_row
from rest_framework.request import Request

from core.arrays import bytes_array, plain_array, text_array
from core.db import in_transaction, server_cursor
from core.encryption import DecryptionError, decrypt, encrypt
from core.json_body import MAX_OBJECT_BYTES, read_body
from core.json_response import dumps
from core.problems import Problem, invalid
from orgs.authentication import caller_of
from orgs.keys import USABLE

HEADER = "Idempotency-Key"
REPLAYED = {"Idempotency-Replayed": "true"}
MAX_CHARACTERS = 255
KEPT_HOURS = 24
# The codes of the problems of a key.
REUSED, RUNNING = "idempotency_key_reused", "idempotency_key_in_use"

# A Structured Field String (RFC 9651 §3.3.3), perhaps with parameters, which mean nothing here.
_QUOTED = re.compile(r'"((?:[\x20\x21\x23-\x5b\x5d-\x7e]|\\["\\])*)"[ \t]*(;.*)?')
_PRINTABLE = re.compile(r"[\x20-\x7e]+")

# The three statements, each for many requests at once.  SQL, because of the advisory locks and the arrays, and because
# the event loop of the front door runs them, too (`core.async_postgresql`).  Whoever holds the lock of a key reads
# afterward what was committed before.  With a LIMIT, a key is one look-up, even if the plan comes from a time when the
# table was small.
LOCK = """
SELECT number, pg_try_advisory_xact_lock(lock) AS is_locked
FROM unnest(%(numbers)s::int[], %(locks)s::bigint[]) AS t(number, lock)
"""
# Before that, in a separate transaction: the requests whose key is in use or was used.
PEEK = """
SELECT w.number
FROM unnest(%(numbers)s::int[], %(locks)s::bigint[], %(organizations)s::uuid[], %(keys)s::text[])
         AS w(number, lock, organization_id, key)
WHERE NOT pg_try_advisory_xact_lock(w.lock)
   OR (
       SELECT true FROM orgs_idempotencykey k
       WHERE k.organization_id = w.organization_id AND k.key = w.key AND k.expires_at > clock_timestamp() LIMIT 1
   )
"""
# The responses that are kept for requests, many at once, and whether each request's key may still have its response.
FIND = f"""
SELECT w.number, k.fingerprint, k.status, k.location, k.body, k.is_encrypted,
       EXISTS (
           SELECT FROM orgs_apikey k JOIN orgs_organization o ON o.id = k.organization_id
           WHERE k.id = w.api_key_id AND {USABLE} AND w.scope = ANY (k.scopes)
       ) AS is_permitted
FROM unnest(%(numbers)s::int[], %(organizations)s::uuid[], %(keys)s::text[], %(api_keys)s::uuid[], %(scopes)s::text[])
         AS w(number, organization_id, key, api_key_id, scope)
CROSS JOIN LATERAL (
    SELECT * FROM orgs_idempotencykey WHERE organization_id = w.organization_id AND key = w.key LIMIT 1
) AS k
WHERE k.expires_at > clock_timestamp()
"""  # noqa: S608 - a constant of ours
# Keeps responses, many at once; a row that has expired is replaced.
KEEP = f"""
INSERT INTO orgs_idempotencykey AS k (
    organization_id, key, fingerprint, status, location, body, is_encrypted, expires_at
)
SELECT organization_id, key, fingerprint, status, location, body, is_encrypted,
       clock_timestamp() + interval '{KEPT_HOURS} hours'
FROM unnest(%(organizations)s::uuid[], %(keys)s::text[], %(fingerprints)s::bytea[], %(statuses)s::int[],
            %(locations)s::text[], %(bodies)s::bytea[], %(encrypted)s::bool[])
         AS t(organization_id, key, fingerprint, status, location, body, is_encrypted)
ON CONFLICT (organization_id, key) DO UPDATE
    SET fingerprint = EXCLUDED.fingerprint, status = EXCLUDED.status, location = EXCLUDED.location,
        body = EXCLUDED.body, is_encrypted = EXCLUDED.is_encrypted, expires_at = EXCLUDED.expires_at
"""  # noqa: S608 - a constant of ours


@dataclass(frozen=True, slots=True)
class Once:
    """A request that is to be served once.

    fingerprint: of the method, the route, and the body.  api_key_id, scope: of the caller, and what it needs.
    """

    organization_id: uuid.UUID
    key: str
    fingerprint: bytes
    api_key_id: uuid.UUID
    scope: str

    @property
    def lock(self) -> int:
        """Return the number of the key's advisory lock."""
        digest = hashlib.sha256(b"idempotency key " + self.organization_id.bytes + self.key.encode()).digest()
        return int.from_bytes(digest[:8], signed=True)


@dataclass(frozen=True, slots=True)
class Locked:
    """A row of LOCK."""

    number: int
    is_locked: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """A successful response as it is kept."""

    status: int
    location: str
    body: bytes
    is_encrypted: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """A row of FIND: what is kept under a key.  is_permitted: the caller's API key may still do what was done."""

    number: int
    fingerprint: bytes
    status: int
    location: str
    body: bytes
    is_encrypted: bool
    is_permitted: bool

    def replay(self, once: Once) -> Kept:
        """Return the first response.  Raises Problem 422 if the key was used for another request."""
        if bytes(self.fingerprint) != once.fingerprint:
            raise reused()
        body = bytes(self.body)
        if self.is_encrypted:
            try:
                body = base64.b64decode(decrypt(body.decode()))
            except DecryptionError:
                raise Problem(
                    "idempotent_response_lost",
                    "The request was served, but its response can't be read any more: encryption keys were changed.",
                ) from None
        return Kept(self.status, self.location, body)


def parse_key(value: str) -> str:
    """Return the key in a header, bare or quoted.  Raises Problem 400."""
    value = value.strip(" \t")
    if value.startswith('"'):
        quoted = _QUOTED.fullmatch(value)
        if quoted is None:
            raise _invalid_key("begins with a quotation mark but isn't a quoted string")
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    if not 1 <= len(value) <= MAX_CHARACTERS:
        raise _invalid_key(f"must have 1 to {MAX_CHARACTERS} characters")
    if not _PRINTABLE.fullmatch(value):
        raise _invalid_key("must consist of printable ASCII characters")
    return value


def _invalid_key(reason: str) -> Problem:
    return invalid([(f"#{HEADER}", reason)], f"The {HEADER} {reason}. Nothing was stored.")


def fingerprint(method: str, route: str, *parts: bytes) -> bytes:
    """Return a SHA-256 of what makes two requests the same.  route: the path below URL_PREFIX."""
    digest = hashlib.sha256()
    for part in (method.encode(), route.rstrip("/").encode(), *parts):
        digest.update(b"%d " % len(part))
        digest.update(part)
    return digest.digest()


def reused() -> Problem:
    """Return the 422 for a key that was used for another request."""
    reason = f"was used for another request in the last {KEPT_HOURS} hours: another body, or another route"
    return Problem(REUSED, f"The {HEADER} {reason}. Nothing was stored.", errors=[(f"#{HEADER}", reason)])


def running() -> Problem:
    """Return the 409 for a key whose first request is still being served."""
    return Problem(
        RUNNING,
        f"A request with this {HEADER} is still being served. Send it again later to get its response.",
        headers={"Retry-After": "1"},
    )


def lock_parameters(requests: Sequence[Once]) -> dict[str, object]:
    """Return the parameters of LOCK; a request's number is its position."""
    return {"numbers": plain_array(range(len(requests))), "locks": plain_array(once.lock for once in requests)}


def peek_parameters(requests: Sequence[Once]) -> dict[str, object]:
    """Return the parameters of PEEK; a request's number is its position."""
    return {
        **lock_parameters(requests),
        "organizations": plain_array(once.organization_id for once in requests),
        "keys": text_array(once.key for once in requests),
    }


def find_parameters(requests: Sequence[Once]) -> dict[str, object]:
    """Return the parameters of FIND; a request's number is its position."""
    return {
        "numbers": plain_array(range(len(requests))),
        "organizations": plain_array(once.organization_id for once in requests),
        "keys": text_array(once.key for once in requests),
        "api_keys": plain_array(once.api_key_id for once in requests),
        "scopes": text_array(once.scope for once in requests),
    }


def keep_parameters(served: Sequence[tuple[Once, Kept]]) -> dict[str, object]:
    """Return the parameters of KEEP."""
    return {
        "organizations": plain_array(once.organization_id for once, _ in served),
        "keys": text_array(once.key for once, _ in served),
        "fingerprints": bytes_array(once.fingerprint for once, _ in served),
        "statuses": plain_array(kept.status for _, kept in served),
        "locations": text_array(kept.location for _, kept in served),
        "bodies": bytes_array(kept.body for _, kept in served),
        "encrypted": plain_array(kept.is_encrypted for _, kept in served),
    }


def find(once: Once) -> Found | None:
    """Return what is kept under a request's key."""
    with server_cursor(class_row(Found)) as cursor:
        return cursor.execute(FIND, find_parameters([once])).fetchone()


F = TypeVar("F", bound=Callable[..., Any])


def idempotent(
    *,
    read: Callable[[Request], bytes] = lambda request: read_body(request._request, MAX_OBJECT_BYTES),
    unless: Callable[[Request], bool] = lambda request: False,
    is_secret: bool = True,
    beforehand: Callable[..., object] | None = None,
    replaying: Callable[[Request], Mapping[str, str]] = lambda request: {},
    conflicting: Callable[[Request], object] = lambda request: None,
) -> Callable[[F], F]:
    """Return a decorator for a view's method that is served once for each `Idempotency-Key`.

    read: reads the body, within the method's limit, and returns what makes two requests the same.  unless: returns
    whether a request changes nothing, so that its response must not be kept.  is_secret: the response may hold a
    secret, so it is stored encrypted, and returned only to the API key that made the first request.  beforehand: called
    with the method's own arguments before its transaction begins, unless the response is kept already or another
    request with the key is being served: for what must not happen in one, such as a request to an endpoint or a wait
    for Redis.  replaying: called before the first response is given again; returns headers for it, and may raise
    Problem.  conflicting: called before a request is refused because of its key.

    The method's transactions become savepoints of the one that keeps the response, and after a deadlock all of it is
    repeated.  So the method does what a rollback doesn't undo with `core.db.after_transaction`.
    """

    def decorate(method: F) -> F:
        @functools.wraps(method)
        def serve(view: Any, request: Request, *args: Any, **kwargs: Any) -> Any:
            given = request.META.get("HTTP_IDEMPOTENCY_KEY")
            if given is None or unless(request):
                if beforehand is not None:
                    beforehand(view, request, *args, **kwargs)
                return method(view, request, *args, **kwargs)
            caller = caller_of(request)
            key = parse_key(given)
            owner = caller.key_id.bytes if is_secret else b""
            content = fingerprint(request.method or "", request._request.path_info, read(request), owner)
            if is_secret:
                # The body may hold a password, which whoever reads the table could guess by its plain hash.
                content = salted_hmac("orgs.idempotency", content, algorithm="sha256").digest()
            once = Once(caller.organization_id, key, content, caller.key_id, view.scopes[request.method].value)
            try:
                # The transaction looks it up again.
                if beforehand is not None and find(once) is None:
                    _require_free(once)
                    beforehand(view, request, *args, **kwargs)
                response, is_replay = in_transaction(
                    lambda: _serve_once(once, lambda: method(view, request, *args, **kwargs), is_secret)
                )
            except Problem as problem:
                if problem.code in (REUSED, RUNNING):
                    conflicting(request)
                raise
            if is_replay:
                for name, value in replaying(request).items():
                    response[name] = value
            return response

        serve.is_idempotent = True  # type: ignore[attr-defined]  # read by `core.openapi.generator`
        return cast(F, serve)

    return decorate


def _require_free(once: Once) -> None:
    """Raise Problem 409 while another request with the key is being served; the lock that tells is gone at once."""
    with server_cursor(class_row(Locked)) as cursor:
        locked = cursor.execute(LOCK, lock_parameters([once])).fetchone()
    if locked is None or not locked.is_locked:
        raise running()


def _serve_once(once: Once, serve: Callable[[], Any], is_secret: bool) -> tuple[Any, bool]:
    """Return the response that `serve` returns, and keep it; or the one that is kept, and True.

    Runs in a transaction.
    """
    with server_cursor(class_row(Locked)) as cursor:
        locked = cursor.execute(LOCK, lock_parameters([once])).fetchone()
    if locked is None or not locked.is_locked:
        raise running()
    if (found := find(once)) is not None:
        return _response(found.replay(once)), True
    response = serve()
    body = dumps(response.data)
    if is_secret:
        body = encrypt(base64.b64encode(body).decode()).encode()
    kept = Kept(response.status_code, response.headers.get("Location", ""), body, is_secret)
    with server_cursor() as cursor:
        cursor.execute(KEEP, keep_parameters([(once, kept)]))
    return response, False


def _response(kept: Kept) -> HttpResponse:
    headers = {**REPLAYED, **({"Location": kept.location} if kept.location else {})}
    return HttpResponse(kept.body, status=kept.status, content_type="application/json", headers=headers)
