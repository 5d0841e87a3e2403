"""A response's head and body go out in one write, whatever the response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from triggers_project.one_write import OneWriteTransport

HEAD = b"HTTP/1.1 202 Accepted\r\ncontent-length: 2\r\n\r\n"


class Recording(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.written.append(b"closed")

    abort = close

    def is_closing(self) -> bool:
        return b"closed" in self.written


def written(use: Callable[[OneWriteTransport], None]) -> tuple[list[bytes], list[bytes]]:
    """Return what was written at once, and what a turn of the loop later."""

    async def run() -> tuple[list[bytes], list[bytes]]:
        transport = Recording()
        use(OneWriteTransport(transport, asyncio.get_running_loop()))
        at_once = list(transport.written)
        await asyncio.sleep(0)
        return at_once, transport.written

    return asyncio.run(run())


def test_a_head_goes_out_with_the_body_that_follows_and_what_follows_that_by_itself() -> None:
    def use(transport: OneWriteTransport) -> None:
        for data in (HEAD, b"{}", HEAD, b"[]", b"more"):
            transport.write(data)

    at_once, later = written(use)
    assert at_once == [HEAD + b"{}", HEAD + b"[]", b"more"]
    assert later == at_once


def test_a_head_that_nothing_follows_goes_out_a_turn_of_the_loop_later() -> None:
    at_once, later = written(lambda transport: transport.write(HEAD))
    assert at_once == []
    assert later == [HEAD]


def test_two_heads_after_each_other_go_out_together() -> None:
    def use(transport: OneWriteTransport) -> None:
        transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        transport.write(HEAD)

    assert written(use)[1] == [b"HTTP/1.1 100 Continue\r\n\r\n" + HEAD]


def test_a_head_whose_connection_was_closed_meanwhile_is_dropped() -> None:
    def use(transport: OneWriteTransport) -> None:
        transport.write(HEAD)
        transport.abort()

    assert written(use) == ([b"closed"], [b"closed"])


def test_closing_loses_no_head_and_everything_else_is_the_transport_s() -> None:
    def use(transport: OneWriteTransport) -> None:
        transport.write(HEAD)
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()

    assert written(use) == ([HEAD, b"closed"], [HEAD, b"closed"])
