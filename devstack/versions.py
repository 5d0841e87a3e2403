"""Earlier versions of the code: which one comes before this one, and its files in a folder that can be run."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
from pathlib import Path

from devstack.errors import DevstackError
from devstack.processes import ROOT, Code

MIGRATIONS = "*/migrations/[0-9]*.py"


def git(*arguments: str, root: Path = ROOT) -> str:
    """Return what a git command prints in `root`.  Raises DevstackError with its message if it fails."""
    done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DevstackError(f"git {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout.strip()


def previous(root: Path = ROOT) -> str:
    """Return the version before this one or, where no tag tells, the commit before the newest migration was added."""
    try:
        return git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD~1", root=root)
    except DevstackError:
        pass
    added = git("log", "-1", "--diff-filter=A", "--format=%H", "--", MIGRATIONS, root=root)
    try:
        before = git("rev-parse", "--verify", "--quiet", f"{added}^{{commit}}^", root=root)
    except DevstackError:
        raise DevstackError(
            "This clone has no version before this one. Get the history, with `git fetch --unshallow --tags`, or name"
            " a commit: make upgrade-check FROM=COMMIT"
        ) from None
    if not git("diff", "--diff-filter=D", "--no-renames", "--name-only", added, "HEAD", "--", MIGRATIONS, root=root):
        return before
    # Migrations were rewritten since, which is done only before a release: begin with the new ones.
    return git("log", "-1", "--format=%H", "--", MIGRATIONS, root=root)


def new_migrations(old: Path, new: Path = ROOT) -> list[str]:
    """Return the migrations that only the new code has, as `app.name`."""
    names = [
        {f"{path.parent.parent.name}.{path.stem}" for path in root.glob("*/migrations/[0-9]*.py")}
        for root in (old, new)
    ]
    return sorted(names[1] - names[0])


def check_out(ref: str, home: Path) -> Code:
    """Put the files of a commit into a folder below `home`, with an environment if it requires other packages."""
    commit = git("rev-parse", "--verify", "--end-of-options", f"{ref}^{{commit}}")
    root = home / commit[:12]
    if not root.exists():
        home.mkdir(parents=True, exist_ok=True)
        archive, unpacked = home / f"{commit[:12]}.tar", home / f"{commit[:12]}.new"
        git("archive", "--format=tar", f"--output={archive.absolute()}", commit)
        with tarfile.open(archive) as files:
            files.extractall(unpacked, filter="data")
        archive.unlink()
        unpacked.rename(root)
    required = (root / "requirements.txt").read_bytes()
    if required == (ROOT / "requirements.txt").read_bytes():
        return Code(root)
    environment = home / f"venv-{hashlib.sha256(required).hexdigest()[:12]}"
    python = environment / "bin" / "python"
    if not (environment / ".installed").exists():
        print(f"Installing what {ref} requires into {environment} ...", flush=True)
        install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(environment)], check=True)
        subprocess.run([str(python), *install, "-r", str(root / "requirements.txt")], check=True)
        (environment / ".installed").touch()
    return Code(root, str(python))
