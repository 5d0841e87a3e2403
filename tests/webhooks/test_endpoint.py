"""What a subscription keeps secret: sealed at rest, opened in memory, in no text about it."""

from __future__ import annotations

from typing import Any

import pytest
from cryptography.fernet import Fernet

from core.encryption import encrypt
from webhooks.destinations.http.endpoint import MAX_LONG_KEPT, open_endpoint, open_headers, seal_headers
from webhooks.destinations.http.signing import new_secret, secret_key


def test_headers_come_back_as_they_were_and_none_take_no_room() -> None:
    headers = {"X-Token": "t=1; ä", "X-Empty": ""}
    sealed = seal_headers(headers)
    assert "X-Token" not in sealed
    assert open_headers(sealed) == headers
    assert seal_headers({}) == ""
    assert open_headers("") == {}


def test_every_secret_signs_during_overlaps_the_current_one_first() -> None:
    current, *earlier = (new_secret() for _ in range(4))
    endpoint = open_endpoint("http://a.example/", "", encrypt(current), [encrypt(secret) for secret in earlier])
    assert endpoint.keys == tuple(secret_key(secret) for secret in (current, *earlier))
    assert open_endpoint("http://a.example/", "", encrypt(current)).keys == (secret_key(current),)


def test_nothing_secret_is_in_a_endpoint_s_text() -> None:
    secret = new_secret()
    endpoint = open_endpoint("http://a.example/", seal_headers({"X-Token": "hunter2"}), encrypt(secret))
    assert "hunter2" not in repr(endpoint)
    assert secret not in repr(endpoint)
    assert repr(secret_key(secret)) not in repr(endpoint)


@pytest.mark.parametrize("sealed", ["nonsense", "gAAAAABnonsense", "\x00"])
def test_what_no_key_opens_is_explained_and_nothing_raises(sealed: str) -> None:
    endpoint = open_endpoint("http://a.example/", "", sealed)
    assert endpoint.keys == ()
    assert "SECRETS_ENCRYPTION_KEYS" in endpoint.fault
    assert sealed not in endpoint.fault


def test_a_key_that_was_dropped_no_longer_opens_what_it_sealed(settings: Any) -> None:
    settings.SECRETS_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    sealed = encrypt(new_secret())
    settings.SECRETS_ENCRYPTION_KEYS = [Fernet.generate_key().decode()]
    assert open_endpoint("http://a.example/", "", sealed).fault


def test_of_endpoints_that_take_much_memory_fewer_are_kept() -> None:
    secret, headers = encrypt(new_secret()), seal_headers({f"X-{number}": "x" * 2048 for number in range(10)})
    short = open_endpoint("https://0.example/", "", secret)
    long = open_endpoint("https://0.example/", headers, secret)
    assert open_endpoint("https://0.example/", headers, secret) is long
    for number in range(1, MAX_LONG_KEPT + 1):
        open_endpoint(f"https://{number}.example/", "", secret)
        open_endpoint(f"https://{number}.example/", headers, secret)
    assert open_endpoint("https://0.example/", "", secret) is short
    assert open_endpoint("https://0.example/", headers, secret) is not long
