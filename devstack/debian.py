"""Programs from Debian's packages, unpacked in a folder of ours; nothing is installed.

apt works in its own folders, as any user.  Libraries that the machine has already are used from there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from devstack.errors import DevstackError, last_line

DOWNLOAD_SECONDS = 540

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


def unpack(home: Path, wanted: Sequence[str]) -> Path:
    """Download packages, and what they need beside what the machine has, into `home`; return where they are unpacked.

    wanted: the first one is the program's.  Raises DevstackError with the reason.
    """
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DevstackError(f"there is no {tool} to fetch {wanted[0]} with")
    root = home / "root"
    shutil.rmtree(root, ignore_errors=True)
    archives = home / "apt" / "cache" / "archives"
    for folder in (archives / "partial", home / "apt/state/lists/partial", home / "apt/log", root):
        folder.mkdir(parents=True, exist_ok=True)
    conf = home / "apt" / "apt.conf"
    conf.write_text(_APT_CONF.format(home=home))
    apt = ["apt-get", "-c", str(conf), "-q"]
    _run([*apt, "update"])
    # Simulated, so that any user may ask: what would be installed beside what the machine has?
    plan = _run([*apt, "-s", "--no-install-recommends", "install", *wanted])
    packages = [f"{words[1]}" for line in plan.splitlines() if len(words := line.split()) > 1 and words[0] == "Inst"]
    if wanted[0] not in packages:
        raise DevstackError(f"this machine's package lists have no {wanted[0]} to fetch")
    _run([*apt, "download", *packages], cwd=archives)
    for archive in sorted(archives.glob("*.deb")):
        _run(["dpkg-deb", "-x", str(archive), str(root)])
    shutil.rmtree(home / "apt", ignore_errors=True)
    return root


def library_folders(root: Path) -> list[str]:
    """Return the folders of shared libraries in unpacked packages, for LD_LIBRARY_PATH."""
    machine = os.uname().machine
    folders = [root / "usr/lib" / f"{machine}-linux-gnu", root / "lib" / f"{machine}-linux-gnu", root / "usr/lib"]
    return [str(folder) for folder in folders]


def _run(command: list[str], cwd: Path | None = None) -> str:
    """Return what a command printed.  Raises DevstackError with its last line when it fails."""
    try:
        done = subprocess.run(
            command, cwd=cwd, env={**os.environ, "LC_ALL": "C"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=DOWNLOAD_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DevstackError(f"`{command[0]}` took longer than {DOWNLOAD_SECONDS} s") from None
    if done.returncode:
        raise DevstackError(f"fetching failed: {last_line(done.stderr)}")
    return done.stdout
