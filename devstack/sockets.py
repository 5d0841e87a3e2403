"""Where a server's Unix socket can live."""

from __future__ import annotations

import hashlib
import os
import socket
import tempfile
from pathlib import Path

# sockaddr_un holds 108 bytes; the longest name we put behind the folder is `.s.PGSQL.5432.lock`.
LONGEST_FOLDER = 85


def short_digest(path: Path) -> str:
    """Return 12 hex digits that stand for an absolute path."""
    return hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:12]


def socket_folder(home: Path) -> Path:
    """Return a folder with mode 0700 for the socket of the server that lives in `home`.

    It is `home`/run, or, when that path is too long for a socket, one of our own under the system's
    folder for temporary files.
    """
    folder = home.absolute() / "run"
    if len(os.fsencode(folder)) > LONGEST_FOLDER:
        folder = Path(tempfile.gettempdir()) / f"triggers-{os.getuid()}-{short_digest(home)}"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
