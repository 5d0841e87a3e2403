"""Real servers for the attacks: an HTTP(S) listener, a name server and a forward proxy."""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from dnslib import AAAA, QTYPE, RCODE, RR, A
from dnslib.server import DNSLogger, DNSServer

from devstack.sockets import free_port


@dataclass
class Seen:
    """One request as it arrived."""

    line: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Listener:
    """A server that counts its connections and keeps its requests."""

    host: str
    port: int
    connections: int = 0
    requests: list[Seen] = field(default_factory=list)
    server_names: list[str | None] = field(default_factory=list)
    resumed: list[bool] = field(default_factory=list)
    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


def read_request(stream: socket.socket, buffer: bytes = b"") -> tuple[Seen, bytes] | None:
    """Read one request with a Content-Length; None when the peer is gone."""
    while b"\r\n\r\n" not in buffer:
        chunk = stream.recv(65536)
        if not chunk:
            return None
        buffer += chunk
    head, _, rest = buffer.partition(b"\r\n\r\n")
    lines = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
    length = int(headers.get("content-length", "0"))
    while len(rest) < length:
        chunk = stream.recv(65536)
        if not chunk:
            return None
        rest += chunk
    return Seen(lines[0], headers, rest[:length]), rest[length:]


def _bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.  port: 0 for one that is free on other addresses, too, so that they can share it.

    A port of the system's choice may be the client's side of somebody's connection on another address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        try:
            return socket.create_server((host, port or free_port()), family=family)
        except OSError as error:
            if port or error.errno != errno.EADDRINUSE:
                raise


@contextlib.contextmanager
def serve(handle: Callable[[socket.socket], None], host: str, port: int = 0) -> Iterator[int]:
    """Accept connections on `host` and handle each on a thread of its own; yields the port."""
    server = _bind(host, port)

    def run(stream: socket.socket) -> None:
        with contextlib.suppress(OSError), stream:
            handle(stream)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                stream, _ = server.accept()
                threading.Thread(target=run, args=(stream,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()


@contextlib.contextmanager
def listen(host: str, port: int = 0, context: ssl.SSLContext | None = None) -> Iterator[Listener]:
    """Run an HTTP server, with TLS if there is a context, that keeps connections alive."""
    listener = Listener(host, port)

    def note_name(stream: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: ssl.SSLContext) -> None:
        listener.server_names.append(name)

    if context is not None:
        context.sni_callback = note_name

    def handle(stream: socket.socket) -> None:
        listener.connections += 1
        if context is not None:
            stream = context.wrap_socket(stream, server_side=True)
        rest = b""
        while (read := read_request(stream, rest)) is not None:
            request, rest = read
            listener.requests.append(request)
            stream.sendall(listener.answer)

    with serve(handle, host, port) as listener.port:
        yield listener


@contextlib.contextmanager
def proxy(host: str = "127.0.0.1", context: ssl.SSLContext | None = None) -> Iterator[Listener]:
    """Run a forward proxy, behind TLS if there is a context: absolute-form requests and CONNECT.

    It keeps what it was asked for, and which of its TLS sessions were resumed.
    """
    listener = Listener(host, 0)

    def tunnel(near: socket.socket, far: socket.socket) -> None:
        # On one thread: two must not be within one TLS connection.
        with contextlib.suppress(OSError):
            while True:
                waiting = isinstance(near, ssl.SSLSocket) and near.pending()
                for source in [near] if waiting else select.select([near, far], [], [])[0]:
                    if not (data := source.recv(65536)):
                        return
                    (far if source is near else near).sendall(data)

    def handle(stream: socket.socket) -> None:
        listener.connections += 1
        if context is not None:
            stream = context.wrap_socket(stream, server_side=True)
        read = read_request(stream)
        if read is None:
            return
        if isinstance(stream, ssl.SSLSocket):
            listener.resumed.append(bool(stream.session_reused))
        request, _ = read
        listener.requests.append(request)
        method, target, _ = request.line.split(" ")
        if method == "CONNECT":
            with socket.create_connection(("127.0.0.1", int(target.rpartition(":")[2]))) as onward:
                stream.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                tunnel(stream, onward)
        else:
            stream.sendall(listener.answer)

    with serve(handle, host) as listener.port:
        yield listener


class Names:
    """A name server whose answers the test changes while it runs."""

    def __init__(self) -> None:
        self.records: dict[str, list[str]] = {}
        self.asked: list[str] = []

    def resolve(self, request: Any, handler: Any) -> Any:
        """Answer one question (dnslib's resolver interface)."""
        name = str(request.q.qname).rstrip(".").lower()
        kind = QTYPE[request.q.qtype]
        reply = request.reply()
        self.asked.append(f"{kind} {name}")
        if name not in self.records:
            reply.header.rcode = RCODE.NXDOMAIN
            return reply
        for address in self.records[name]:
            if kind == "A" and ":" not in address:
                reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=0))
            if kind == "AAAA" and ":" in address:
                reply.add_answer(RR(name, QTYPE.AAAA, rdata=AAAA(address), ttl=0))
        return reply

    @contextlib.contextmanager
    def running(self) -> Iterator[str]:
        """Run the server; yields its `address:port`."""
        server = DNSServer(self, address="127.0.0.1", port=0, logger=DNSLogger(log="-request,-reply,-truncated,-error"))
        server.start_thread()
        try:
            yield f"127.0.0.1:{server.server.server_address[1]}"
        finally:
            server.server.shutdown()
            server.server.server_close()
