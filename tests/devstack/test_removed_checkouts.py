"""The servers of tests and development leave nothing behind that nobody would find."""

from __future__ import annotations

import os
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
