"""A Chromium for the tests: the one that CHROMIUM names, the machine's, or Debian's packages unpacked under .local/.

Fetching installs nothing: apt works in folders of its own, as any user, and what it downloads is unpacked
beside them.  Libraries that the machine has already are used from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

from devstack.errors import DevstackError, last_line
from devstack.locks import locked

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / ".local" / "chromium"
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
WANTED = ("chromium", "fonts-dejavu-core", "fontconfig-config")
DOWNLOAD_SECONDS = 540
HINT = "Install Chromium or Google Chrome, or set CHROMIUM to its path (Debian: apt-get install chromium)."

# Read after the machine's own configuration: whose hooks would delete files outside our folders.
_APT_CONF = """
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Invoke;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
#clear Dir::Cache::archives;
#clear Dir::Cache::pkgcache;
#clear Dir::Cache::srcpkgcache;
#clear Binary::apt;
Dir::State "{home}/apt/state";
Dir::State::status "/var/lib/dpkg/status";
Dir::State::extended_states "{home}/apt/state/extended_states";
Dir::Cache "{home}/apt/cache";
Dir::Cache::archives "archives";
Dir::Log "{home}/apt/log";
APT::Sandbox::User "";
APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
Acquire::Retries "3";
"""

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
    """Return a Chromium that starts, fetched if need be.  Raises NoBrowser."""
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
    chromium = _unpacked(home)
    with locked(home / "lock"):
        if not (home / "complete").exists():
            _download(home)
            if not _starts(chromium):
                raise NoBrowser(f"The packages that were fetched don't start here. {HINT}")
            (home / "complete").touch()
            shutil.rmtree(home / "apt", ignore_errors=True)
    return chromium


def _unpacked(home: Path) -> Chromium:
    root = home / "root"
    machine = os.uname().machine
    folders = [root / "usr/lib" / f"{machine}-linux-gnu", root / "lib" / f"{machine}-linux-gnu", root / "usr/lib"]
    libraries = [str(folder) for folder in folders] + [str(folders[0] / "pulseaudio")]
    return Chromium(
        root / "usr/lib/chromium/chromium",
        {
            "LD_LIBRARY_PATH": ":".join(libraries),
            "FONTCONFIG_FILE": str(home / "fonts.conf"),
            "XDG_CONFIG_HOME": str(home / "config"),
            "XDG_CACHE_HOME": str(home / "cache"),
        },
    )


def _download(home: Path) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise NoBrowser(f"No Chromium here, and no {tool} to fetch one with. {HINT}")
    shutil.rmtree(home / "root", ignore_errors=True)
    archives = home / "apt" / "cache" / "archives"
    for folder in (archives / "partial", home / "apt/state/lists/partial", home / "apt/log", home / "root"):
        folder.mkdir(parents=True, exist_ok=True)
    conf = home / "apt" / "apt.conf"
    conf.write_text(_APT_CONF.format(home=home))
    (home / "fonts.conf").write_text(_FONTS_CONF.format(home=home))
    apt = ["apt-get", "-c", str(conf), "-q"]
    _run([*apt, "update"])
    # Simulated, so that any user may ask: what would be installed beside what the machine has?
    plan = _run([*apt, "-s", "--no-install-recommends", "install", *WANTED])
    packages = [f"{words[1]}" for line in plan.splitlines() if len(words := line.split()) > 1 and words[0] == "Inst"]
    if "chromium" not in packages:
        raise NoBrowser(f"This machine's package lists have no Chromium to fetch. {HINT}")
    _run([*apt, "download", *packages], cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(home / "root")])


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Return what a command printed.  Raises NoBrowser with its last line when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NoBrowser(f"`{command[0]}` took longer than {DOWNLOAD_SECONDS} s. {HINT}") from None
    if done.returncode:
        raise NoBrowser(f"No Chromium here, and fetching one failed: {last_line(done.stderr)} {HINT}")
    return done.stdout


def _starts(chromium: Chromium) -> bool:
    """Tell whether the program prints its version: a wrapper of a package that isn't there doesn't."""
    try:
        done = subprocess.run(
            [str(chromium.program), "--version"], env={**os.environ, **chromium.env},
            capture_output=True, timeout=60, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
