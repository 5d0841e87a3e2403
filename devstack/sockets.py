"""Ports and Unix sockets: which are free, and where a socket can live."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import stat
import tempfile
from pathlib import Path

from devstack.errors import DevstackError

# sockaddr_un holds 104 bytes on macOS and 108 on Linux; the longest name that we put behind the
# folder is `/.s.PGSQL.5432.lock`.
LONGEST_FOLDER = 84


def short_digest(path: Path) -> str:
    """Return 12 hex digits that stand for an absolute path."""
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()[:12]


def socket_folder(home: Path) -> Path:
    """Return where the socket of the server that lives in `home` belongs; nothing is made.

    It is `home`/run, or, when that path is too long for a socket or holds a comma or a quote (which
    PostgreSQL takes for a list), a folder of our own under the system's folder for temporary files.
    """
    folder = home.absolute() / "run"
    if len(os.fsencode(folder)) > LONGEST_FOLDER or any(mark in str(folder) for mark in ",\"'"):
        folder = Path(tempfile.gettempdir()) / f"triggers-{os.getuid()}-{short_digest(home)}"
    return folder


def make_private_folder(folder: Path, *, uid: int | None = None, gid: int | None = None) -> None:
    """Make `folder` with mode 0700, owned by us or by `uid` and `gid`.

    Raises DevstackError when something else stands there: another user may have put it into a
    folder that all can write to, and what it isn't ours to change we don't change.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), uid}:
        raise DevstackError(f"{folder} is not a folder of ours; remove it and try again.")
    if stat.S_IMODE(found.st_mode) != 0o700:
        folder.chmod(0o700)
    if uid is not None and gid is not None and (found.st_uid, found.st_gid) != (uid, gid):
        os.chown(folder, uid, gid)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago.

    At random, and below the ports that the system gives to clients, so that hardly anybody takes it meanwhile.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)
        if why_port_is_not_free(port) is None:
            return port


def why_port_is_not_free(port: int) -> str | None:
    """Return None when a server can listen on `port` of 127.0.0.1, or else why not, in a few words."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            probe.listen(1)
        except OSError as error:
            return (error.strerror or str(error)).lower()
    return None
