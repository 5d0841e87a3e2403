"""The receiver knows what it returned in full, and what was cut off before it could."""

from __future__ import annotations

import http.client
import socket

import pytest

from devstack.http_receiver import Receiver, Response
from devstack.waiting import wait_until


def _open(receiver: Receiver, path: str) -> socket.socket:
    stream = socket.create_connection(("127.0.0.1", receiver.port), timeout=20)
    stream.sendall(f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{{}}".encode())
    receiver.wait_for(1, path)
    return stream


def _post(receiver: Receiver, path: str) -> int:
    connection = http.client.HTTPConnection("127.0.0.1", receiver.port, timeout=20)
    try:
        connection.request("POST", path, b"{}")
        return connection.getresponse().status
    finally:
        connection.close()


def test_requests_that_are_held_get_their_responses_when_it_is_over(receiver: Receiver) -> None:
    receiver.behavior = lambda request, number: Response(299 if request.path == "/held" else 200)
    receiver.hold()
    stream, gone = _open(receiver, "/held"), _open(receiver, "/gone")
    assert {request.path: request.port for request in receiver.unanswered} == {
        "/held": stream.getsockname()[1],
        "/gone": gone.getsockname()[1],
    }
    gone.close()
    wait_until(lambda: receiver.of("/gone")[0].cut)
    assert receiver.of("/held")[0].status == 0
    receiver.release()
    with stream:
        assert stream.recv(100).startswith(b"HTTP/1.1 299")
    assert [(request.status, request.cut) for request in receiver.requests] == [(299, False), (0, True)]
    assert receiver.unanswered == []
    assert _post(receiver, "/after") == 200


def test_a_response_may_wait_reset_the_connection_or_never_end(receiver: Receiver) -> None:
    responses = {
        "/late": Response(201, delay=0.05),
        "/reset": Response(reset=True),
        "/endless": Response(endless=True),
        "/never": Response(delay=3600),
    }
    receiver.behavior = lambda request, number: responses[request.path]
    assert _post(receiver, "/late") == 201
    with pytest.raises(ConnectionResetError):
        _post(receiver, "/reset")
    with _open(receiver, "/endless") as stream:
        assert sum(len(stream.recv(65536)) for _ in range(100)) > 100_000
    _open(receiver, "/never").close()
    wait_until(lambda: receiver.of("/never")[0].cut)
    # A reset is the receiver's own doing: nothing was returned, and the sender didn't go away.
    assert [(request.status, request.cut) for request in receiver.of("/reset")] == [(0, False)]
