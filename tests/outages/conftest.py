"""Servers and processes that these tests stop, freeze and kill; the other tests' own are left alone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from devstack.receiver import Receiver
from soak.stack import Stack
from tests.outages.system import Account, open_account
from tests.servers import HOME


@pytest.fixture(scope="session")
def servers() -> Iterator[Stack]:
    """Return a PostgreSQL and a Valkey with nothing running on them."""
    stack = Stack(HOME / "outages")
    try:
        stack.start()
        yield stack
    finally:
        stack.stop()


@pytest.fixture
def stack(servers: Stack) -> Iterator[Stack]:
    """Return the servers, up and empty; what a test starts on them ends with it."""
    servers.postgres.start()
    servers.valkey.resume()
    servers.valkey.start()
    servers.empty()
    yield servers
    servers.postgres.start()
    servers.stop_processes()


@pytest.fixture
def account(stack: Stack) -> Account:
    """Return an organisation with a key."""
    return open_account(stack)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """Return a receiver that answers 200."""
    with Receiver() as running:
        yield running
