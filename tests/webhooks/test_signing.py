"""The signature is Standard Webhooks 1.0."""

from __future__ import annotations

import base64

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from webhooks.destinations.http.signing import new_secret, public_key, secret_key, sign


def test_the_published_vector_is_reproduced() -> None:
    keys = [secret_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    signature = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_new_secret_holds_32_random_bytes() -> None:
    first, second = new_secret(), new_secret()
    assert first != second
    assert first.startswith("whsec_")
    assert len(base64.b64decode(first.removeprefix("whsec_"))) == 32


@pytest.mark.parametrize(
    "wrong",
    ["", "abc", "whsec_", "whsec_!!!", "whsec_" + base64.b64encode(b"short").decode(), "whsk_", "whsk_c2hvcnQ=",
     "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="],
)  # fmt: skip
def test_what_is_no_secret_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match="secret"):
        secret_key(wrong)


PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="


def test_the_published_vector_of_ed25519_is_reproduced_beside_hmac() -> None:
    keys = [secret_key(PRIVATE), secret_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")]
    signature = sign(keys, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert signature == (
        "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
        " v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )
    assert public_key(PRIVATE) == PUBLIC
    assert public_key(new_secret()) is None


def test_an_ed25519_secret_may_be_its_seed_alone_but_not_with_another_public_key() -> None:
    raw = base64.b64decode(PRIVATE.removeprefix("whsk_"))
    assert public_key("whsk_" + base64.b64encode(raw[:32]).decode()) == PUBLIC
    with pytest.raises(ValueError, match="second half"):
        secret_key("whsk_" + base64.b64encode(raw[:32] + bytes(32)).decode())


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
