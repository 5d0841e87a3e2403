"""A request as data, what its response is read as, and when it is sent again: without any input or output."""

from __future__ import annotations

import datetime
import email.utils
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

import httpx
import msgspec

from triggers_client.deprecations import warn_if_deprecated
from triggers_client.errors import ConnectionFailedError, TriggersError, read_problem
from triggers_client.json_text import read
from triggers_client.models import Page

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request of the API.

    returns: what the response's JSON is read as.  repeatable: doing it twice does no harm.  keyed: it carries an
    Idempotency-Key.  wait: how many seconds the server may take on purpose.  gone_is_done: a 404 means that an earlier
    attempt has succeeded.
    """

    method: str
    path: str
    returns: Any
    query: Mapping[str, str] = field(default_factory=dict)
    body: Any = msgspec.UNSET
    repeatable: bool = False
    keyed: bool = False
    wait: float = 0.0
    gone_is_done: bool = False

    def read(self, response: httpx.Response) -> T:
        """Return what a successful response says.  Raises TriggersError if it isn't what the API returns."""
        if self.returns is None:
            return None  # type: ignore[return-value]
        try:
            value: T = read(response.content, self.returns)
        except msgspec.MsgspecError as error:
            raise TriggersError(
                "unexpected_response",
                response.status_code,
                f"This isn't what the API returns: {error}. Is the URL right?",
            ) from None
        return value


@dataclass(frozen=True, slots=True)
class ListCall(Generic[T]):
    """A list, page by page."""

    first: Call[Page[T]]

    def after(self, cursor: str) -> Call[Page[T]]:
        """Return the request for the page at a cursor."""
        return replace(self.first, query={**self.first.query, "cursor": cursor})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often, and after how many seconds, a request is sent again.

    The waits grow from `base` to `longest`, twofold, each of them shortened by chance so that clients don't come back
    together.  A Retry-After is honored if it is at most `longest_retry_after`; else the error is raised at once.
    """

    retries: int = 3
    base: float = 0.5
    longest: float = 8.0
    longest_retry_after: float = 60.0

    def delay(self, retry: int) -> float:
        """Return the seconds before a retry (0 is the first)."""
        return min(self.longest, self.base * 2.0**retry) * random.uniform(0.5, 1.0)


def new_key() -> str:
    """Return what makes a request recognizable: a random UUID."""
    return str(uuid.uuid4())


class Attempts(Generic[T]):
    """The attempts of one call: what to send, and whether and when to send it again."""

    def __init__(self, call: Call[T], policy: RetryPolicy, base_url: str, timeout: float) -> None:
        self.call = call
        self._policy = policy
        self._retries = 0
        headers = {}
        content = None
        if call.keyed:
            headers["Idempotency-Key"] = new_key()
        if call.body is not msgspec.UNSET:
            content = msgspec.json.encode(call.body)
            headers["Content-Type"] = "application/json"
        self.request: dict[str, Any] = {
            "method": call.method,
            "url": base_url + call.path,
            "params": dict(call.query),
            "content": content,
            "headers": headers,
            "timeout": httpx.Timeout(timeout, read=timeout + call.wait),
        }

    def after_response(self, response: httpx.Response) -> float | None:
        """Return in how many seconds to send the request again, or None if it has succeeded.  Raises TriggersError."""
        warn_if_deprecated(response)
        if response.is_success:
            return None
        if response.status_code == 404 and self.call.gone_is_done and self._retries:
            return None
        problem = read_problem(response.status_code, response.content, retry_after(response.headers.get("retry-after")))
        refused = response.status_code == 429 or problem.code == "idempotency_key_in_use"
        return self._again(problem, refused or (response.status_code >= 500 and self._is_repeatable))

    def after_error(self, error: httpx.TransportError) -> float:
        """Return in how many seconds to send the request again.  Raises ConnectionFailedError."""
        not_sent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        # What can't be sent at all won't be sent the next time, either.
        hopeless = isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError)
        try:
            return self._again(explain(error), not hopeless and (not_sent or self._is_repeatable))
        except ConnectionFailedError as failure:
            raise failure from error

    @property
    def _is_repeatable(self) -> bool:
        # Servers keep the response to a POST that carries an Idempotency-Key.
        return self.call.repeatable or self.call.keyed

    def _again(self, error: TriggersError, may_repeat: bool) -> float:
        asked = error.retry_after or 0.0
        if not may_repeat or self._retries >= self._policy.retries or asked > self._policy.longest_retry_after:
            raise error
        delay = max(asked, self._policy.delay(self._retries))
        self._retries += 1
        return delay


def explain(error: httpx.TransportError) -> ConnectionFailedError:
    """Return what went wrong with a connection."""
    code = "timeout" if isinstance(error, httpx.TimeoutException) else "connection_failed"
    return ConnectionFailedError(code, 0, str(error) or type(error).__name__)


def retry_after(value: str | None, now: datetime.datetime | None = None) -> float | None:
    """Return the seconds of a Retry-After, which is a number of them or a date (RFC 9110 §10.2.3)."""
    if value is None:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return max(0.0, (when - (now or datetime.datetime.now(datetime.UTC))).total_seconds())
