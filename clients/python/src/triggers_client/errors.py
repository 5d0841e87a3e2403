"""What the API refuses, as exceptions: by the problem's code where there is a class for it, else by its status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field.

    pointer: a JSON pointer into the body; `?name` is a query parameter, `#Name` a header.
    """

    pointer: str
    detail: str


class TriggersError(Exception):
    """A request that didn't succeed.

    code: the problem's stable word, for programs.  status: the HTTP status, 0 if there was no response.
    detail: a sentence for people.  errors: what is wrong with each field.  request_id: names the request in the
    server's log.  retry_after: in how many seconds to come back, if the server said so.  members: the whole problem.
    """

    def __init__(
        self,
        code: str,
        status: int,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
        retry_after: float | None = None,
        members: Mapping[str, Any] | None = None,
    ) -> None:
        faults = "; ".join(f"{error.pointer} {error.detail}" for error in errors)
        super().__init__(f"{detail.rstrip('.')}: {faults} ({code})" if faults else f"{detail} ({code})")
        self.code = code
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after = retry_after
        self.members = dict(members or {})


class ConnectionFailedError(TriggersError):
    """The server can't be reached, or the connection ended before its response (`connection_failed`, `timeout`)."""


class BadRequestError(TriggersError):
    """400, and other statuses that say the request is wrong: correct it; `errors` names each fault."""


class AuthenticationError(TriggersError):
    """401: there is no key, or it isn't valid."""


class InvalidApiKeyError(AuthenticationError):
    """The key is wrong, revoked, or expired."""


class PermissionDeniedError(TriggersError):
    """403: the key may not do this."""


class MissingScopeError(PermissionDeniedError):
    """The key lacks a scope, which `members["scope"]` names."""


class NotFoundError(TriggersError):
    """404: there is no such thing in the key's organization."""


class InboxNotFoundError(NotFoundError):
    """There is no inbox of this name."""


class ConflictError(TriggersError):
    """409: it doesn't go with what is there."""


class DedupConflictError(ConflictError):
    """The `dedup_id` was used for an event with different content, which `members["event_id"]` names."""


class NotRetryableError(ConflictError):
    """The delivery is in flight, held, or cancelled; `members["delivery_status"]` says which."""


class GoneError(TriggersError):
    """410."""


class CursorExpiredError(GoneError):
    """Events behind the cursor may be gone; begin again with an empty one."""


class TooLargeError(TriggersError):
    """413: the body, or the batch, is larger than the server takes."""


class RateLimitedError(TriggersError):
    """429: come back in `retry_after` seconds."""


class ServerError(TriggersError):
    """5xx: a fault of the server, or of what is in front of it."""


BY_CODE: Mapping[str, type[TriggersError]] = {
    "invalid_api_key": InvalidApiKeyError,
    "missing_scope": MissingScopeError,
    "inbox_not_found": InboxNotFoundError,
    "dedup_conflict": DedupConflictError,
    "not_retryable": NotRetryableError,
    "cursor_expired": CursorExpiredError,
}
BY_STATUS: Mapping[int, type[TriggersError]] = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    410: GoneError,
    413: TooLargeError,
    429: RateLimitedError,
}


def _without_document(status: int) -> str:
    told = f"The server returned the status {status}, without a problem document."
    return told if status >= 500 else f"{told} Is it the right URL?"


def error_class(code: str, status: int) -> type[TriggersError]:
    """Return the class for a problem's code, or else for its status."""
    if code in BY_CODE:
        return BY_CODE[code]
    return BY_STATUS.get(status) or (ServerError if status >= 500 else BadRequestError)


class _Problem(msgspec.Struct):
    """The members of a problem document that are read; whatever is in front of the server may send something else."""

    code: str
    detail: str = ""
    request_id: str | None = None
    errors: list[dict[str, Any]] = []


def read_problem(status: int, body: bytes, retry_after: float | None = None) -> TriggersError:
    """Return the exception for an error response, also for one that isn't a problem document."""
    try:
        problem = msgspec.json.decode(body, type=_Problem)
        members = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        code = f"http_{status}"
        return error_class(code, status)(
            code, status, _without_document(status),
            retry_after=retry_after,
        )  # fmt: skip
    faults = [FieldError(str(one.get("pointer", "")), str(one.get("detail", ""))) for one in problem.errors]
    return error_class(problem.code, status)(
        problem.code, status, problem.detail, errors=faults, request_id=problem.request_id, retry_after=retry_after,
        members=members,
    )  # fmt: skip
