"""The client for asyncio and trio: the same operations, awaited."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Generic, ParamSpec, Self, TypeVar, overload

import anyio
import httpx

from triggers_client import models, operations
from triggers_client.calls import Call, ListCall
from triggers_client.configuration import Configuration
from triggers_client.event_stream import Following

P = ParamSpec("P")
T = TypeVar("T")


class AsyncPages(Generic[T]):
    """A list that is read page by page while it is iterated over."""

    def __init__(self, client: AsyncClient, listing: ListCall[T]) -> None:
        self._client = client
        self._listing = listing

    async def __aiter__(self) -> AsyncIterator[T]:
        async for page in self.pages():
            for item in page.data:
                yield item

    async def pages(self, cursor: str | None = None) -> AsyncIterator[models.Page[T]]:
        """Iterate over the pages, from a page's `next_cursor` on."""
        call = self._listing.first if cursor is None else self._listing.after(cursor)
        while True:
            page = await self._client.execute(call)
            yield page
            if page.next_cursor is None:
                return
            call = self._listing.after(page.next_cursor)


class AsyncResource:
    """Operations that belong together."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client

    async def execute(self, call: Call[T]) -> T:
        """Send a request."""
        return await self._client.execute(call)

    def listing(self, call: ListCall[T]) -> AsyncPages[T]:
        """Return a list."""
        return AsyncPages(self._client, call)


class _Operation(Generic[P, T]):
    """Makes a method of a function that builds a request: the same parameters, and the response's value."""

    def __init__(self, build: Callable[P, Call[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, instance: None, owner: type[AsyncResource]) -> Self: ...

    @overload
    def __get__(self, instance: AsyncResource, owner: type[AsyncResource]) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(
        self, instance: AsyncResource | None, owner: type[AsyncResource]
    ) -> Self | Callable[P, Coroutine[Any, Any, T]]:
        if instance is None:  # help() looks at the class
            return self

        @functools.wraps(self._build)
        async def method(*args: P.args, **kwargs: P.kwargs) -> T:
            return await instance.execute(self._build(*args, **kwargs))

        return method


class _Listing(Generic[P, T]):
    """The same for a list."""

    def __init__(self, build: Callable[P, ListCall[T]]) -> None:
        self._build = build
        self.__doc__ = build.__doc__

    @overload
    def __get__(self, instance: None, owner: type[AsyncResource]) -> Self: ...

    @overload
    def __get__(self, instance: AsyncResource, owner: type[AsyncResource]) -> Callable[P, AsyncPages[T]]: ...

    def __get__(self, instance: AsyncResource | None, owner: type[AsyncResource]) -> Self | Callable[P, AsyncPages[T]]:
        if instance is None:
            return self

        @functools.wraps(self._build)
        def method(*args: P.args, **kwargs: P.kwargs) -> AsyncPages[T]:
            return instance.listing(self._build(*args, **kwargs))

        return method


class AsyncEvents(AsyncResource):
    """Sending events, and reading them back."""

    send = _Operation(operations.send_event)
    send_batch = _Operation(operations.send_batch)
    list = _Listing(operations.list_events)
    get = _Operation(operations.get_event)


class AsyncSubscriptions(AsyncResource):
    """Endpoints and inboxes, and which events they want."""

    list = _Listing(operations.list_subscriptions)
    get = _Operation(operations.get_subscription)
    create = _Operation(operations.create_subscription)
    create_inbox = _Operation(operations.create_inbox)
    change = _Operation(operations.change_subscription)
    delete = _Operation(operations.delete_subscription)
    enable = _Operation(operations.enable_subscription)
    disable = _Operation(operations.disable_subscription)
    rotate_secret = _Operation(operations.rotate_secret)
    preview = _Operation(operations.preview_subscription)
    test = _Operation(operations.test_subscription)
    recover = _Operation(operations.recover_subscription)
    get_recovery = _Operation(operations.get_recovery)


class AsyncDeliveries(AsyncResource):
    """What became of events at the subscriptions that want them."""

    list = _Listing(operations.list_deliveries)
    get = _Operation(operations.get_delivery)
    attempt = _Operation(operations.get_attempt)
    retry = _Operation(operations.retry_delivery)
    skip = _Operation(operations.skip_delivery)

    async def attempts(self, delivery_id: str) -> Sequence[models.Attempt]:
        """Return the attempts of a delivery, the first one first."""
        delivery = await self.get(delivery_id)
        return delivery.attempts


class AsyncEventTypes(AsyncResource):
    """The catalog."""

    list = _Listing(operations.list_event_types)
    get = _Operation(operations.get_event_type)
    create = _Operation(operations.create_event_type)
    change = _Operation(operations.change_event_type)
    delete = _Operation(operations.delete_event_type)
    import_openapi = _Operation(operations.import_event_types)
    settings = _Operation(operations.get_event_type_settings)
    change_settings = _Operation(operations.change_event_type_settings)


class AsyncInbox(AsyncResource):
    """Fetching events instead of receiving them."""

    fetch = _Operation(operations.fetch_inbox)
    fetch_raw = _Operation(operations.fetch_raw)
    ack = _Operation(operations.acknowledge)
    nack = _Operation(operations.give_back)
    extend = _Operation(operations.extend_leases)
    read_log = _Operation(operations.read_log)

    async def log(
        self, cursor: str = "", *, inbox: str | None = None, limit: int | None = None, type: str | None = None
    ) -> AsyncIterator[models.LogPage]:
        """Iterate over the log's pages, to what is there now.  Keep the last page's `next_cursor` to go on later."""
        while True:
            page = await self.read_log(cursor, inbox=inbox, limit=limit, type=type)
            yield page
            if not page.has_more:
                return
            cursor = page.next_cursor

    def stream(
        self, cursor: str = "latest", *, inbox: str | None = None, type: str | None = None
    ) -> AsyncIterator[models.StreamedEvent]:
        """Follow the log without an end, from a cursor on; a connection that ends is opened again."""
        return self._client.follow(cursor, inbox, type)


class AsyncClient:
    """The API for asyncio and trio.  Use `async with`, or close it with `aclose`.

    The parameters are those of `Client`; http: an `httpx.AsyncClient` of yours.
    """

    def __init__(
        self, api_key: str | None = None, base_url: str | None = None, *, timeout: float = 30.0, max_retries: int = 3,
        http: httpx.AsyncClient | None = None,
    ) -> None:  # fmt: skip
        self.configuration = Configuration.of(api_key, base_url, timeout, max_retries)
        self._http = http or httpx.AsyncClient(timeout=self.configuration.http_timeout)
        self._owns_http = http is None
        self.events = AsyncEvents(self)
        self.subscriptions = AsyncSubscriptions(self)
        self.deliveries = AsyncDeliveries(self)
        self.event_types = AsyncEventTypes(self)
        self.inbox = AsyncInbox(self)

    async def me(self) -> models.Me:
        """Tell whose key this is, and what it may do."""
        return await self.execute(operations.get_me())

    async def execute(self, call: Call[T]) -> T:
        """Send a request, again if necessary, and return what its response says.  Raises TriggersError."""
        attempts = self.configuration.attempts(call)
        while True:
            try:
                response = await self._http.request(**self._with_headers(attempts.request))
            except httpx.TransportError as error:
                delay: float | None = attempts.after_error(error)
            else:
                delay = attempts.after_response(response)
            if delay is None:
                return call.read(response)
            await anyio.sleep(delay)

    async def follow(
        self, cursor: str, inbox: str | None, event_type: str | None
    ) -> AsyncIterator[models.StreamedEvent]:
        """Iterate over the events of a stream."""
        following = Following(cursor, inbox, event_type, self.configuration.attempts)
        while True:
            error: httpx.TransportError | None = None
            delay: float | None = None
            try:
                async with self._http.stream(**self._with_headers(following.request())) as response:
                    if response.is_success:
                        following.opened(response)
                        async for line in response.aiter_lines():
                            event = following.feed(line)
                            if event is not None:
                                yield event
                    else:
                        await response.aread()
                        delay = following.refused(response)
            except httpx.TransportError as failure:
                error = failure
            await anyio.sleep(following.ended(error) if delay is None else delay)

    def _with_headers(self, request: dict[str, Any]) -> dict[str, Any]:
        return {**request, "headers": {**self.configuration.headers, **request["headers"]}}

    async def aclose(self) -> None:
        """Close the connections."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()
