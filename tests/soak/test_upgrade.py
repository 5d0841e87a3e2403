"""What `make upgrade-check` begins with, and what its checks and those of the soak forgive."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import pytest

from devstack.errors import DevstackError
from devstack.http_receiver import Received
from devstack.late_responses import late_responses, outlived_leases
from devstack.versions import new_migrations, previous


class History:
    """A repository with commits of migrations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.git("init", "--quiet")

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=Test", "-c", "user.email=test@example.com", *arguments]
        return subprocess.run(command, cwd=self.root, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, *migrations: str, without: str = "") -> str:
        for name in migrations:
            path = self.root / "app" / "migrations" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(path.read_text() + "# changed\n" if path.exists() else "")
        if without:
            self.git("rm", "--quiet", f"app/migrations/{without}.py")
        self.git("add", ".")
        self.git("commit", "--quiet", "--allow-empty", "--message", "Change")
        return self.git("rev-parse", "HEAD")


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path)


def test_the_version_before_is_the_newest_tag_before_this_commit(history: History) -> None:
    history.commit("0001_initial")
    history.git("tag", "v1.0.0")
    history.commit("0002_more")
    history.git("tag", "nightly")
    history.commit()
    history.git("tag", "v1.1.0")
    assert previous(history.root) == "v1.0.0"


def test_without_tags_it_is_the_commit_before_the_newest_migration(history: History) -> None:
    history.commit("0001_initial")
    before = history.commit("README")
    history.commit("0002_more")
    history.commit("0002_more")  # words of it
    assert previous(history.root) == before
    rewritten = history.commit("0001_initial", without="0002_more")
    history.commit()
    assert previous(history.root) == rewritten


def test_a_clone_without_history_is_told_of(history: History, tmp_path: Path) -> None:
    history.commit("0001_initial")
    history.commit("0002_more")
    clone = tmp_path / "clone"
    history.git("clone", "--quiet", "--depth", "1", history.root.as_uri(), str(clone))
    with pytest.raises(DevstackError, match="git fetch --unshallow --tags"):
        previous(clone)


def test_the_new_migrations_are_named(tmp_path: Path) -> None:
    for root, names in (("old", ["0001_initial"]), ("new", ["0001_initial", "0002_more"])):
        for name in names:
            path = tmp_path / root / "app" / "migrations" / f"{name}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    assert new_migrations(tmp_path / "old", tmp_path / "new") == ["app.0002_more"]


@pytest.mark.parametrize(
    ("requests", "errors", "late"),
    [
        ("answered answered", {"": 1, "timeout": 1}, 1),
        ("answered answered", {"": 2}, 0),
        ("cut answered answered", {"": 2, "timeout": 1}, 0),
        ("cut answered answered", {"": 1, "timeout": 2}, 1),
        # Went out again within the same attempt, which took too long.
        ("reset answered answered", {"": 1, "timeout": 1}, 1),
        ("reset answered answered", {"": 2, "connection_lost": 1}, 0),
    ],
)
def test_late_responses_are_told_from_repeated_requests(requests: str, errors: dict[str, int], late: int) -> None:
    received = [
        Received("/", b"", b"", 0, 0.0, 0.0, status=200 if kind == "answered" else 0, cut=kind == "cut")
        for kind in requests.split()
    ]
    assert late_responses(received, Counter(errors)) == late


@pytest.mark.parametrize(
    ("errors", "outlived"),
    [
        ({"": 2, "worker_lost": 1}, 1),
        # The killed worker's success is nowhere.
        ({"": 1, "worker_lost": 1}, 0),
        # Nobody had lost a lease when it was sent twice.
        ({"": 2}, 0),
        ({"": 3, "worker_lost": 1}, 1),
    ],
)
def test_outlived_leases_are_told_from_killed_workers(errors: dict[str, int], outlived: int) -> None:
    assert outlived_leases(Counter(errors)) == outlived
