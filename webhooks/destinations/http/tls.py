"""New TLS connections to an endpoint resume the session of an earlier one.

In a full handshake, the endpoint signs and we check a chain of certificates.  A resumed one needs neither, and with TLS
1.2 one round trip less.  asyncio has no parameter for a session, but `ssl.SSLContext.sslobject_class` is a documented
place for a class of one's own: each connection's TLS object takes a session from the cache before its handshake, and
adds the one that the endpoint gave.

A resumed session isn't verified again: OpenSSL checks neither the certificate nor the name.  So a session comes from a
full handshake only, under the same context (CA file, check of the name) and for the very name that it is offered to,
and it is used for at most an hour.  The port isn't known here.  Another port of the same name that knows the session
must hold that name's keys; one that doesn't know it refuses, like an endpoint that has been restarted, and a full
handshake with all its checks follows.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

# A session of an ordinary certificate takes about 13 KB.
MAX_NAMES = 1_000
# An endpoint may limit a ticket's life; beyond this limit, we have to notice that a certificate was revoked or has
# expired.
MAX_AGE_SECONDS = 3_600.0
# Some endpoints give a new session each time and never recognize one, and with some Pythons, reading one leaks a copy.
READ_PAUSE_SECONDS = 60.0
# An endpoint that drops connections which offer a session is not offered it any longer.
PATIENCE_SECONDS = 3.0
# A session holds the endpoint's certificates, and it may send any along.  Usual ones have a fifth of this.
MAX_CERTIFICATES_BYTES = 32_768
# How many are read where Python leaks memory each time: about 10 MB.
MAX_READS_WHERE_READING_LEAKS = 1_000


def reading_leaks(version: tuple[int, int, int]) -> bool:
    """Return whether this Python loses a copy of the session, some 7 KB, each time that one is read.

    That is https://github.com/python/cpython/issues/116810: all of 3.10 and 3.11, and 3.12 and 3.13 at first.
    """
    return (3, 10) <= version < (3, 12, 8) or (3, 13) <= version < (3, 13, 1)


@dataclass(slots=True)
class _Known:
    """The state of one server name; times are by the cache's clock."""

    session: ssl.SSLSession | None = None
    expires: float = 0.0
    read_again: float = 0.0
    unanswered_since: float | None = None


class SessionCache:
    """The last session of each server name, bounded in number and age.  For one thread, as an event loop is.

    A session is offered to any number of connections, at the same time too.  TLS 1.3 advises against it for
    clients that want to stay unrecognized; we sign what we send.
    """

    def __init__(
        self, names: int = MAX_NAMES, reads: int | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Make an empty cache.

        names: how many are remembered; the one unused for the longest is forgotten first.
        reads: how many sessions may be read in all; None is any number.
        clock: seconds that never go back.
        """
        self._names = names
        self._reads = reads
        self._clock = clock
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def offer(self, name: str) -> ssl.SSLSession | None:
        """Return the session that a new connection to `name` shall offer; None for a full handshake."""
        known = self._known.get(name)
        if known is None or known.session is None:
            return None
        self._known.move_to_end(name)
        now = self._clock()
        if known.unanswered_since is None:
            known.unanswered_since = now
        if now >= known.expires or now - known.unanswered_since > PATIENCE_SECONDS:
            known.session = None
        return known.session

    def finished(self, name: str) -> None:
        """Note that a handshake with `name` was completed, with the session that was offered or without."""
        if known := self._known.get(name):
            known.unanswered_since = None

    def refuse(self, name: str) -> None:
        """Note that a handshake with `name` failed: the next is a full one."""
        if known := self._known.get(name):
            known.session = None

    def wants(self, name: str) -> bool:
        """Return whether the session of a connection that made a full handshake is worth reading now."""
        known = self._known.get(name)
        return self._reads != 0 and (known is None or self._clock() >= known.read_again)

    def keep(self, name: str, read: Callable[[], ssl.SSLSession | None]) -> None:
        """Remember for `name` what `read` returns, if that can be resumed."""
        if self._reads is not None:
            self._reads -= 1
        now = self._clock()
        known = self._known.setdefault(name, _Known())
        self._known.move_to_end(name)
        while len(self._known) > self._names:
            self._known.popitem(last=False)
        known.read_again = now + READ_PAUSE_SECONDS
        known.session = known.unanswered_since = None
        session = read()
        if session is not None and (session.has_ticket or session.id):
            life = min(session.timeout, session.ticket_lifetime_hint or session.timeout, MAX_AGE_SECONDS)
            known.session, known.expires = session, now + life


class ResumingObject(ssl.SSLObject):
    """A client's TLS connection that offers the cache's session and brings it a new one."""

    sessions: ClassVar[SessionCache]
    _name: str | None = None
    _may_bring = False

    def do_handshake(self) -> None:
        """Go on with the handshake; the first call offers the session."""
        if self._name is None:
            self._name = self.server_hostname or ""
            if (offered := self.sessions.offer(self._name)) is not None:
                self.session = offered
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError:
            self.sessions.refuse(self._name)
            raise
        self.sessions.finished(self._name)
        self._may_bring = not self.session_reused and self.sessions.wants(self._name)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Read application data, as ssl.SSLObject does."""
        data = super().read(len, buffer)
        # With TLS 1.3 sessions come after the handshake.  Servers send them before their first response.
        if self._may_bring and data and self._name:
            self._may_bring = False
            if self.sessions.wants(self._name):
                self.sessions.keep(self._name, self._read_session)
        return data

    def _read_session(self) -> ssl.SSLSession | None:
        """Return this connection's session; None if it is too large to be worth it."""
        if sys.version_info >= (3, 13):
            certificates = self.get_unverified_chain()
        else:
            certificates = [self.getpeercert(True) or b""]
        if sum(map(len, certificates)) > MAX_CERTIFICATES_BYTES:
            return None
        try:
            return self.session
        except ValueError:  # with its ticket it is more than Python copies
            return None


def resume_sessions(context: ssl.SSLContext, sessions: SessionCache | None = None) -> None:
    """Let the client connections that `context` makes from now on resume their sessions.

    sessions: the cache, for this context alone.  Raises ValueError if the context doesn't check certificates and
    names: what was never verified can't be taken as verified.
    """
    if not context.check_hostname:
        raise ValueError("The context doesn't check host names.")
    if sessions is None:
        sessions = SessionCache(reads=MAX_READS_WHERE_READING_LEAKS if reading_leaks(sys.version_info[:3]) else None)
    cache = sessions

    class Resuming(ResumingObject):
        sessions = cache

    context.sslobject_class = Resuming
