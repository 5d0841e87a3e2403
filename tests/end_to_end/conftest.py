"""An installation that is driven from outside: the one that TEST_API_URL names, or one of the tests' own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from devstack.stack import Stack
from tests.system import Account, open_account


@pytest.fixture(scope="module")
def installation(request: pytest.FixtureRequest) -> Iterator[Account]:
    """Return an organization of a running installation, with web and one worker.

    TEST_API_URL and TEST_API_KEY name one that runs already; its workers must be allowed to call this
    machine.  Otherwise both are started here.
    """
    url, key = os.environ.get("TEST_API_URL"), os.environ.get("TEST_API_KEY")
    if url and key:
        yield Account(url.rstrip("/"), key)
        return
    servers: Stack = request.getfixturevalue("servers")
    servers.empty()
    try:
        servers.start_web()
        servers.start_workers({})
        yield open_account(servers)
    finally:
        servers.stop_processes()


@pytest.fixture(autouse=True)
def without_what_was_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Delete the subscriptions that a test has made, or a page that it follows: they would want later events."""
    if "installation" not in request.fixturenames:
        yield
        return
    account: Account = request.getfixturevalue("installation")
    before = set(_subscriptions(account))
    yield
    for subscription_id in _subscriptions(account):
        if subscription_id not in before:
            account.call("DELETE", f"/api/subscriptions/{subscription_id}")


def _subscriptions(account: Account) -> list[str]:
    """Return the ids of the account's newest subscriptions."""
    return [one["id"] for one in account.call("GET", "/api/subscriptions?limit=100").document["data"]]
