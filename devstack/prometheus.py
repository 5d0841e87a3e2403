"""Prometheus and its promtool, for tests: the machine's, or Debian's, unpacked under .local/."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from devstack import debian
from devstack.errors import DevstackError
from devstack.locks import locked
from devstack.processes import ROOT, Process

HOME = ROOT / ".local" / "prometheus"
HINT = "Install Prometheus (Debian: apt-get install prometheus)."


def find(program: str) -> tuple[str, dict[str, str]]:
    """Return `prometheus` or `promtool`, downloaded if necessary, and its environment.  Raises DevstackError."""
    installed = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/local/bin:/usr/bin")
    return (installed, {}) if installed else fetch(HOME, program)


def fetch(home: Path, program: str) -> tuple[str, dict[str, str]]:
    """Return a program in `home`, downloaded and unpacked there once, and its environment.  Raises DevstackError."""
    home.mkdir(parents=True, exist_ok=True)
    root = home / "root"
    with locked(home / "lock"):
        if not (home / "complete").exists():
            try:
                debian.unpack(home, ["prometheus"])
            except DevstackError as error:
                raise DevstackError(f"No Prometheus here: {error}. {HINT}") from None
            (home / "complete").touch()
    return str(root / "usr/bin" / program), {"LD_LIBRARY_PATH": ":".join(debian.library_folders(root))}


def make(folder: Path, config: str, port: int) -> Process:
    """Return a Prometheus with a configuration, not started; it keeps its data in `folder`."""
    program, env = find("prometheus")
    (folder / "prometheus.yml").write_text(config)
    command = [
        program,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    return Process("prometheus", command, folder / "prometheus.log", env)
