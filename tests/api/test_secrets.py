"""`/api/subscriptions/{id}/secrets`: any number of secrets sign, each until its end, and none is shown again."""

from __future__ import annotations

import base64
import datetime
import time
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from django.utils import timezone
from standardwebhooks import Webhook, WebhookVerificationError

from core.encryption import decrypt
from devstack.http_receiver import Received, Receiver
from orgs.models import AuditEntry
from tests.api.helpers import assert_problem
from tests.security.egress import deliver
from webhooks.models import Subscription

OWN = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="


def make(api: Any, **more: Any) -> dict[str, Any]:
    """Return a new subscription, with the path of its secrets."""
    made = api.post("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"], **more})
    assert made.status_code == 201, made.content
    return {**made.json(), "path": f"/api/subscriptions/{made.json()['id']}/secrets"}


def later(**span: float) -> str:
    return (timezone.now() + datetime.timedelta(**span)).isoformat()


def signs(secret: str, request: Received) -> bool:
    """Return whether the verifier of PyPI's `standardwebhooks` accepts the request."""
    try:
        Webhook(secret).verify(request.body, request.headers)
    except WebhookVerificationError:
        return False
    return True


def signs_publicly(public: str, request: Received) -> bool:
    """Return whether one of the `v1a` signatures is of the public key: PyPI's and npm's verifiers know `v1` alone."""
    key = Ed25519PublicKey.from_public_bytes(base64.b64decode(public.removeprefix("whpk_")))
    headers = request.headers
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + request.body
    for signature in headers["webhook-signature"].split():
        version, _, encoded = signature.partition(",")
        if version == "v1a":
            try:
                key.verify(base64.b64decode(encoded), signed)
            except InvalidSignature:
                continue
            return True
    return False


def test_a_subscription_is_made_with_a_secret_of_ones_own_which_is_not_repeated(api: Any) -> None:
    made = make(api, secret=OWN)
    assert made["secret"] is None
    assert OWN not in str(made)
    row = Subscription.objects.get(pk=made["id"])
    assert decrypt(row.encrypted_secret) == OWN
    (listed,) = api.get(made["path"]).json()["data"]
    assert (listed["masked"], listed["type"], listed["public_key"], listed["expires_at"]) == (
        "whsec_***", "hmac-sha256", None, None,
    )  # fmt: skip


@pytest.mark.parametrize(
    "wrong",
    [
        "", "whsec_", "hunter2hunter2hunter2", "whsec_!!!", "whsec_" + base64.b64encode(b"x" * 23).decode(),
        "whsec_" + base64.b64encode(b"x" * 65).decode(), PUBLIC, "whsk_c2hvcnQ=", 5, None, ["whsec_"],
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\u00e9", "whsec_" + "A" * 400,
    ],
)  # fmt: skip
def test_what_is_no_secret_is_refused_without_being_quoted(api: Any, wrong: Any) -> None:
    body = {"url": "https://a.example/", "event_types": ["*"], "secret": wrong}
    answer = api.post("/api/subscriptions", body)
    assert_problem(answer, 400)
    assert answer.json()["errors"][0]["pointer"] == "/secret"
    if isinstance(wrong, str) and len(wrong) > 8:
        assert wrong not in answer.content.decode()
    made = make(api)
    assert_problem(api.post(made["path"], {"secret": wrong}), 400)
    assert_problem(api.post(made["path"].replace("/secrets", "/rotate-secret"), {"secret": wrong}), 400)


@pytest.mark.django_db(transaction=True)
def test_all_secrets_sign_until_they_end_or_are_removed(api: Any, receiver: Receiver) -> None:
    made = make(api, url=receiver.url())
    added = api.post(made["path"], {"secret": OWN, "expires_at": later(hours=1)})
    assert added.status_code == 201
    assert added.json()["secret"] is None
    asymmetric = api.post(made["path"], {"secret_type": "ed25519"}).json()
    assert asymmetric["secret"] is None, "the private key stays here"
    own_key = api.post(made["path"], {"secret": PRIVATE}).json()
    assert own_key["public_key"] == PUBLIC
    shared = api.post(made["path"], {}).json()

    def receive() -> Received:
        api.post("/api/events", {"type": "a", "data": {"at": time.monotonic()}})
        deliver()
        return receiver.requests[-1]

    first = receive()
    assert [one.split(",")[0] for one in first.headers["webhook-signature"].split()] == ["v1", "v1", "v1a", "v1a", "v1"]
    assert all(signs(secret, first) for secret in (made["secret"], OWN, shared["secret"]))
    assert all(signs_publicly(key, first) for key in (PUBLIC, asymmetric["public_key"]))
    # One ends by itself, one is removed, and the current one leaves to another one.
    Subscription.objects.update(
        previous_secrets_expire_at=[
            end and timezone.now() for end in Subscription.objects.get().previous_secrets_expire_at
        ]
    )
    assert api.delete(f"{made['path']}/{own_key['id']}").status_code == 204
    current = next(row for row in api.get(made["path"]).json()["data"] if row["id"] != shared["id"])
    assert api.delete(f"{made['path']}/{current['id']}").status_code == 204
    second = receive()
    assert not any(signs(secret, second) for secret in (made["secret"], OWN))
    assert signs(shared["secret"], second)
    assert signs_publicly(asymmetric["public_key"], second)
    assert not signs_publicly(PUBLIC, second)


@pytest.mark.django_db(transaction=True)
def test_ed25519_alone(api: Any, receiver: Receiver) -> None:
    made = make(api, url=receiver.url(), secret_type="ed25519")
    assert made["secret"] is None
    assert made["public_key"].startswith("whpk_")
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    (request,) = receiver.requests
    assert request.headers["webhook-signature"].startswith("v1a,")
    assert signs_publicly(made["public_key"], request)
    assert not signs_publicly(PUBLIC, request)
    # A rotation stays with the type.
    rotated = api.post(made["path"].replace("/secrets", "/rotate-secret"), {"overlap_seconds": 60}).json()
    assert rotated["secret"] is None
    assert rotated["public_key"] != made["public_key"]
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    assert all(signs_publicly(one["public_key"], receiver.requests[-1]) for one in (made, rotated))


def test_the_list_shows_the_current_one_first_and_each_end(api: Any) -> None:
    made = make(api)
    end = "2030-01-31T12:00:00Z"
    added = api.post(made["path"], {"expires_at": end}).json()
    listed = api.get(made["path"]).json()["data"]
    assert [row["id"] for row in listed][1:] == [added["id"]]
    assert listed[0]["expires_at"] is None
    assert datetime.datetime.fromisoformat(listed[1]["expires_at"]) == datetime.datetime.fromisoformat(end)
    assert all("secret" not in row for row in listed)
    never = api.patch(f"{made['path']}/{added['id']}", {"expires_at": None})
    assert never.status_code == 200
    assert never.json()["expires_at"] is None
    # Now the first one may end: the second one is the current one.
    ends = api.patch(f"{made['path']}/{listed[0]['id']}", {"expires_at": end})
    assert ends.status_code == 200
    assert [row["id"] for row in api.get(made["path"]).json()["data"]] == [added["id"], listed[0]["id"]]
    assert decrypt(Subscription.objects.get(pk=made["id"]).encrypted_secret) == added["secret"]


def test_one_secret_without_an_end_is_always_left(api: Any) -> None:
    made = make(api)
    (only,) = api.get(made["path"]).json()["data"]
    api.post(made["path"], {"expires_at": later(days=1)})
    one = f"{made['path']}/{only['id']}"
    for answer in (api.delete(one), api.patch(one, {"expires_at": later(days=1)})):
        assert_problem(answer, 409)
        assert answer.json()["code"] == "last_secret"


def test_ten_sign_beside_the_current_one_and_none_twice(api: Any) -> None:
    made = make(api)
    for _ in range(9):
        assert api.post(made["path"], {}).status_code == 201
    assert api.post(made["path"], {"secret": OWN}).status_code == 201
    refused = api.post(made["path"], {"expires_at": later(days=1)})
    assert_problem(refused, 409)
    assert refused.json()["code"] == "too_many_secrets"
    again = api.post(made["path"], {"secret": OWN})
    assert_problem(again, 409)
    assert again.json()["code"] == "secret_exists"
    rotated = api.post(made["path"].replace("/secrets", "/rotate-secret"), {})
    assert_problem(rotated, 409)
    assert rotated.json()["next_rotation_at"] is None
    ended = api.post(made["path"].replace("/secrets", "/rotate-secret"), {"end_earlier_secrets": True})
    assert ended.status_code == 200
    assert len(api.get(made["path"]).json()["data"]) == 2


@pytest.mark.parametrize(
    "end", ["2020-01-01T00:00:00Z", "soon", 5, "", True, "9999-12-31T23:59:59-14:00", "2090-01-01T00:00:00Z", {}]
)
def test_an_end_is_a_time_to_come(api: Any, end: Any) -> None:
    made = make(api)
    (only,) = api.get(made["path"]).json()["data"]
    for answer in (
        api.post(made["path"], {"expires_at": end}),
        api.patch(f"{made['path']}/{only['id']}", {"expires_at": end}),
    ):
        assert_problem(answer, 400)
        assert answer.json()["errors"][0]["pointer"] == "/expires_at"


def test_a_type_that_contradicts_the_secret_is_refused(api: Any) -> None:
    made = make(api)
    for body in (
        {"secret": OWN, "secret_type": "ed25519"}, {"secret": PRIVATE, "secret_type": "hmac-sha256"},
        {"secret_type": "rsa"},
    ):  # fmt: skip
        answer = api.post(made["path"], body)
        assert_problem(answer, 400)
        assert answer.json()["errors"][0]["pointer"] == "/secret_type"


def test_each_act_has_its_audit_entry_without_the_secret(api: Any) -> None:
    made = make(api, secret=OWN)
    added = api.post(made["path"], {}).json()
    private = api.post(made["path"], {"secret": PRIVATE}).json()
    api.patch(f"{made['path']}/{added['id']}", {"expires_at": later(days=1)})
    api.delete(f"{made['path']}/{private['id']}")
    api.post(made["path"].replace("/secrets", "/rotate-secret"), {"secret": PRIVATE})
    entries = AuditEntry.objects.filter(target=made["id"]).order_by("id")
    assert [entry.action for entry in entries] == [
        "subscription.create", "subscription.add_secret", "subscription.add_secret", "subscription.change_secret",
        "subscription.remove_secret", "subscription.rotate_secret",
    ]  # fmt: skip
    assert entries[3].detail["secret"] == added["id"]
    text = str([entry.detail for entry in entries]) + api.get("/api/audit").content.decode()
    for secret in (OWN, PRIVATE, added["secret"]):
        assert secret not in text


def test_an_inbox_has_no_secrets_and_another_secret_is_not_found(api: Any) -> None:
    inbox = api.post("/api/subscriptions", {"kind": "inbox", "inbox": "orders", "event_types": ["*"]}).json()
    path = f"/api/subscriptions/{inbox['id']}/secrets"
    assert_problem(api.get(path), 409)
    assert_problem(api.post(path, {}), 409)
    with_secret = {"kind": "inbox", "inbox": "b", "event_types": ["*"], "secret": OWN}
    assert_problem(api.post("/api/subscriptions", with_secret), 400)
    made = make(api)
    unknown = f"{made['path']}/0198f2d0-6d3c-7a52-9b1e-2f4c8a7d1e91"
    assert_problem(api.delete(unknown), 404)
    assert_problem(api.patch(unknown, {"expires_at": None}), 404)


def test_a_row_from_before_there_were_details_has_secrets_with_lasting_ids(api: Any) -> None:
    made = make(api)
    api.post(made["path"].replace("/secrets", "/rotate-secret"), {})
    Subscription.objects.update(secret_details=[])
    before = api.get(made["path"]).json()["data"]
    assert len(before) == 2
    added = api.post(made["path"], {}).json()
    after = api.get(made["path"]).json()["data"]
    assert [row["id"] for row in after] == [before[0]["id"], added["id"], before[1]["id"]]
