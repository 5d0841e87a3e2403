"""The signature is Standard Webhooks 1.0."""

from __future__ import annotations

import base64

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from webhooks.destinations.http.signing import new_secret, secret_key, sign


def test_the_published_vector_is_reproduced() -> None:
    keys = [secret_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    signature = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_holds_32_random_bytes() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize("wrong", ["", "abc", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"short").decode()])
def test_what_is_no_secret_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        secret_key(wrong)


def test_an_independent_verifier_accepts_each_of_two_secrets_and_no_changed_body() -> None:
    import time

    old, new = new_secret(), new_secret()
    body, now = b'{"a":1}', int(time.time())
    headers = {
        "webhook-id": "abc",
        "webhook-timestamp": str(now),
        "webhook-signature": sign([secret_key(new), secret_key(old)], "abc", now, body),
    }
    Webhook(old).verify(body, headers)
    Webhook(new).verify(body, headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(new).verify(b'{"a":2}', headers)
