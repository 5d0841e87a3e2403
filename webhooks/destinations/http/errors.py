"""What can go wrong between the URL and the response; `failures` turns each into an outcome."""

from __future__ import annotations


class DnsFailed(OSError):
    """The host name has no address, or none could be learned."""


class ConnectFailed(OSError):
    """No connection could be made, for a reason other than TLS."""


class ConnectionLost(OSError):
    """The connection ended before a complete response head arrived."""


class ProxyFailed(Exception):
    """The egress proxy can't be reached, or it refuses to connect onward."""


class InvalidResponse(Exception):
    """What arrived isn't an HTTP response.  The message is a phrase of ours, fit for the tenant."""
