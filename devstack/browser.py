"""A Chromium for the tests: the one that CHROMIUM names, the machine's, or Debian's packages unpacked under .local/.

Fetching installs nothing; see `devstack.debian`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from devstack import debian
from devstack.errors import DevstackError
from devstack.locks import locked

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".local" / "chromium"
# The shell first: the same engine without windows, which takes half of the time for a page.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
PACKAGES = NAMES[:2]
FONTS = ("fonts-dejavu-core", "fontconfig-config")
HINT = "Install Chromium or Google Chrome, or set CHROMIUM to its path (Debian: apt-get install chromium)."

_FONTS_CONF = """<?xml version="1.0"?>
<!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
  <dir>{home}/root/usr/share/fonts</dir>
  <dir>/usr/share/fonts</dir>
  <cachedir>{home}/fonts-cache</cachedir>
</fontconfig>
"""


class NoBrowser(DevstackError):
    """There is no Chromium, and none can be fetched; the message says what to install."""


@dataclass(frozen=True, slots=True)
class Chromium:
    """A program and the environment variables that it needs."""

    program: Path
    env: dict[str, str] = field(default_factory=dict)


def find_chromium() -> Chromium:
    """Return a Chromium that starts, downloaded if necessary.  Raises NoBrowser."""
    named = os.environ.get("CHROMIUM")
    if named:
        found = shutil.which(named)
        if found is None:
            raise NoBrowser(f"CHROMIUM={named} is not a program.")
        return Chromium(Path(found))
    for name in NAMES:
        found = shutil.which(name)
        if found is not None and _starts(Chromium(Path(found))):
            return Chromium(Path(found))
    return fetch_chromium(HOME)


def fetch_chromium(home: Path) -> Chromium:
    """Return the Chromium in `home`, downloaded and unpacked there once.  Raises NoBrowser."""
    home.mkdir(parents=True, exist_ok=True)
    with locked(home / "lock"):
        complete = home / "complete"
        if not complete.exists():
            name = _download(home)
            if not _starts(_unpacked(home, name)):
                raise NoBrowser(f"The packages that were fetched don't start here. {HINT}")
            complete.write_text(name)
        return _unpacked(home, complete.read_text() or PACKAGES[-1])


def _unpacked(home: Path, name: str) -> Chromium:
    root = home / "root"
    folders = debian.library_folders(root)
    libraries = [*folders, f"{folders[0]}/pulseaudio"]
    return Chromium(
        root / "usr/lib/chromium" / name,
        {
            "LD_LIBRARY_PATH": ":".join(libraries),
            "FONTCONFIG_FILE": str(home / "fonts.conf"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
        },
    )


def _download(home: Path) -> str:
    """Fetch the first package that there is; return its name, which is the program's."""
    (home / "fonts.conf").write_text(_FONTS_CONF.format(home=home))
    reasons = []
    for name in PACKAGES:
        try:
            debian.unpack(home, (name, *FONTS))
            return name
        except DevstackError as error:
            reasons.append(str(error))
    raise NoBrowser(f"No Chromium here: {reasons[-1]}. {HINT}") from None


def _starts(chromium: Chromium) -> bool:
    """Return whether the program prints its version: a wrapper of a package that isn't there doesn't."""
    try:
        done = subprocess.run(
            [str(chromium.program), "--version"], env={**os.environ, **chromium.env},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
