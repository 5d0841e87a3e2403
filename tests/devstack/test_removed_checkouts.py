"""The servers of tests and development leave nothing behind that nobody would find."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from devstack.postgres import NEUTRAL, Postgres, short_digest
from tests.servers import HOME


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers have their data outside the checkout")
@pytest.mark.parametrize("removed", [True, False])
def test_the_data_of_a_checkout_that_was_removed_is_deleted(tmp_path: Path, removed: bool) -> None:
    home = tmp_path / "postgres"
    data = NEUTRAL / short_digest(home)
    data.mkdir()
    (data / "home").write_text(str(home))
    if not removed:
        home.mkdir()
        (home / "postgres.id").write_text("mark")
    try:
        Postgres(HOME / "postgres", durable=False).start()  # it runs already
        assert data.exists() is not removed
    finally:
        if data.exists():
            (data / "home").unlink()
            data.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's servers have their data outside the checkout")
def test_where_a_server_is_at_home_can_be_read_while_it_is_started() -> None:
    """A file that is being written is empty for a moment, and whoever read that took the data for nobody's."""
    server = Postgres(HOME / "postgres", durable=False)  # it runs already
    written = NEUTRAL / short_digest(server.home) / "home"
    seen: set[str] = set()
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(written.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for _ in range(20):
            server.start()
    finally:
        done.set()
        reader.join()
    assert seen == {str(server.home)}
