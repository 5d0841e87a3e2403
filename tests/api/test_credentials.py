"""What authorizes requests to an endpoint: taken, checked, sent, encrypted, and shown to nobody again."""

from __future__ import annotations

import base64
import datetime
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.fernet import Fernet
from django.conf import settings
from django.core.management import call_command

from core.encryption import decrypt
from devstack.http_receiver import Received, Receiver, Response
from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem
from tests.security.egress import deliver
from tests.security.test_secrets_at_rest import dump, forms
from tests.servers import ENVIRONMENT
from tests.webhooks.helpers import raw_server
from tests.webhooks.test_client_certificates import MutualServer, parts
from webhooks import subscriptions
from webhooks.destinations.http.auth import Basic, Bearer, ClientCredentials, open_auth
from webhooks.destinations.http.destination import SHORTEST_HIDDEN
from webhooks.models import DeliveryAttempt, Subscription

PATH = "/api/subscriptions"
BASIC = {"type": "basic", "username": "shop", "password": "correct horse: bätter"}
BEARER = {"type": "bearer", "token": "tok-0123456789.abc_DEF~+/=="}
OAUTH = {
    "type": "oauth2", "token_url": "https://login.example/token", "client_id": "app",
    "client_secret": "very-hidden-one", "scope": "hooks",
}  # fmt: skip


OWN_HEADERS = {"X-A": "1", "X-Key": "Token hidden-key-of-the-shop"}


def new(api: Any, **more: Any) -> Any:
    return api.post(PATH, {"url": "https://a.example/", "event_types": ["*"], **more})


def made(api: Any, **more: Any) -> str:
    """Return the path of a new subscription."""
    answer = new(api, **more)
    assert answer.status_code == 201, answer.content
    return f"{PATH}/{answer.json()['id']}"


def pointers(answer: Any) -> set[str]:
    assert_problem(answer, 400)
    return {error["pointer"] for error in answer.json()["errors"]}


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def certificate(authority: trustme.CA) -> dict[str, str]:
    chain, key = parts(authority.issue_cert("shop.example", common_name="shop"))
    return {"certificate": chain, "private_key": key}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (BASIC, "Basic " + base64.b64encode("shop:correct horse: bätter".encode()).decode()),
        (BEARER, "Bearer tok-0123456789.abc_DEF~+/=="),
        ({"type": "basic", "username": "", "password": ""}, "Basic Og=="),
    ],
)
def test_requests_are_authorized_and_the_attempt_does_not_keep_it(
    api: Any, receiver: Receiver, auth: dict[str, str], header: str
) -> None:
    # The endpoint repeats what it got, and what is kept of its long response ends within a secret.
    long = "-" * (settings.RESPONSE_BODY_BYTES - 12) + OWN_HEADERS["X-Key"]
    receiver.behavior = lambda request, number: Response(
        500, {"x-echo": request.headers["x-key"]}, (str(request.headers) if number == 1 else long).encode()
    )
    path = made(api, url=receiver.url(), auth=auth, signature_header="X-Shop-Signature", headers=OWN_HEADERS)
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    request = receiver.requests[0]
    assert request.headers["authorization"] == header
    assert request.headers["x-shop-signature"] == request.headers["webhook-signature"]
    assert request.headers["x-a"] == "1"
    shown = api.get(path).json()
    assert (shown["auth_type"], shown["signature_header"]) == (auth["type"], "X-Shop-Signature")
    assert "auth" not in shown
    attempt = DeliveryAttempt.objects.get()
    kept = api.get(f"/api/deliveries/{attempt.delivery_id}/attempts/1")
    sent = {row["name"]: row["value"] for row in kept.json()["exchange"]["request"]["headers"]}
    assert (sent["authorization"], sent["X-Shop-Signature"], sent["webhook-signature"]) == ("***", "***", "***")
    if len(header.split()[1]) >= SHORTEST_HIDDEN:
        assert header.split()[1] not in kept.content.decode(), "not even where the endpoint repeats it"
    tested = api.post(f"{path}/test", {}).json()
    assert tested["response_body"].endswith("-***")
    for answer in (kept.content.decode(), json.dumps(tested)):
        assert OWN_HEADERS["X-Key"][6:] not in answer
        assert OWN_HEADERS["X-Key"][:9] not in answer
    previewed = api.post(f"{path}/preview", {"type": "a", "data": 1}).content.decode()
    assert header not in previewed
    # Without it, from the next attempt on.
    assert api.patch(path, {"auth": None, "signature_header": ""}).json()["auth_type"] is None
    receiver.behavior = lambda request, number: Response()
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    assert {"authorization", "x-shop-signature"}.isdisjoint(receiver.requests[-1].headers)


def test_what_is_stored_is_what_was_given(api: Any) -> None:
    path = made(api, auth=OAUTH)
    row = Subscription.objects.get()
    assert open_auth(row.encrypted_auth) == ClientCredentials(
        "https://login.example/token", "app", "very-hidden-one", "hooks", "", "header"
    )
    api.patch(path, {"auth": BASIC})
    row.refresh_from_db()
    assert open_auth(row.encrypted_auth) == Basic("shop", "correct horse: bätter")
    api.patch(path, {"auth": BEARER})
    row.refresh_from_db()
    assert open_auth(row.encrypted_auth) == Bearer("tok-0123456789.abc_DEF~+/==")


@pytest.mark.parametrize(
    ("auth", "at"),
    [
        ("Bearer abc", "/auth"), ([], "/auth"), ({}, "/auth/type"), ({"type": "digest"}, "/auth/type"),
        ({"type": 5}, "/auth/type"), ({"type": []}, "/auth/type"),
        ({"type": "basic", "username": "a"}, "/auth/password"),
        ({**BASIC, "username": "a:b"}, "/auth/username"), ({**BASIC, "password": "a\nb"}, "/auth/password"),
        ({**BASIC, "password": 5}, "/auth/password"), ({**BASIC, "password": "\ud800"}, "/auth/password"),
        ({**BASIC, "token": "x"}, "/auth/token"),
        ({"type": "bearer", "token": ""}, "/auth/token"), ({"type": "bearer", "token": "Bearer x"}, "/auth/token"),
        ({"type": "bearer", "token": "a\r\nX-Evil: 1"}, "/auth/token"),
        ({"type": "bearer", "token": "é"}, "/auth/token"),
        ({"type": "bearer", "token": "x" * 9000}, "/auth/token"), ({"type": "bearer"}, "/auth/token"),
        ({**OAUTH, "token_url": "ftp://a.example/"}, "/auth/token_url"),
        ({**OAUTH, "token_url": "http://169.254.169.254/"}, "/auth/token_url"),
        ({**OAUTH, "token_url": "https://a:b@login.example/"}, "/auth/token_url"),
        ({**OAUTH, "token_url": "https://login.example:25/"}, "/auth/token_url"),
        ({**OAUTH, "client_secret": ""}, "/auth/client_secret"), ({**OAUTH, "scope": "a\x00"}, "/auth/scope"),
        ({**OAUTH, "client_authentication": "jwt"}, "/auth/client_authentication"),
        ({**OAUTH, "grant_type": "password"}, "/auth/grant_type"),
    ],
)  # fmt: skip
def test_what_cannot_authorize_is_refused_by_name_without_being_quoted(api: Any, auth: Any, at: str) -> None:
    body = {"url": "https://a.example/", "event_types": ["*"], "auth": auth}
    answer = api.request("POST", PATH, raw=json.dumps(body).encode())
    if "\\ud800" in json.dumps(body):
        assert_problem(answer, 400)
        return
    assert pointers(answer) == {at}
    for hidden in ("correct horse", "very-hidden-one", "tok-0123"):
        assert hidden not in answer.content.decode()
    assert not Subscription.objects.exists()


def test_credentials_in_the_url_are_refused_and_the_message_names_auth(api: Any) -> None:
    answer = new(api, url="https://user:hunter2@a.example/")
    assert pointers(answer) == {"/url"}
    assert "`auth`" in answer.json()["errors"][0]["detail"]
    assert "hunter2" not in answer.content.decode()


def test_a_header_of_ones_own_and_auth_conflict_whichever_comes_second(api: Any) -> None:
    header = {"authorization": "Bearer mine"}
    assert pointers(new(api, headers=header, auth=BASIC)) == {"/auth"}
    with_header, with_auth = made(api, headers=header), made(api, auth=BASIC)
    assert pointers(api.patch(with_header, {"auth": BASIC})) == {"/auth"}
    assert pointers(api.patch(with_auth, {"headers": header})) == {"/headers"}
    assert api.patch(with_header, {"auth": BASIC, "headers": {}}).status_code == 200
    assert api.patch(with_auth, {"headers": header, "auth": None}).status_code == 200
    assert api.patch(with_auth, {"description": "untouched"}).status_code == 200


@pytest.mark.parametrize(
    "name",
    ["Connection", "transfer-encoding", "Keep-Alive", "TE", "Trailer", "Upgrade", "Host", "content-length", "Cookie",
     "Proxy-Authorization", "proxy-connection", "User-Agent", "Webhook-Signature", "webhook-id", "ce-id", "traceparent",
     "Authorization", "X Y", "X:Y", "X\r\nY", "é", "x" * 101, 5],
)  # fmt: skip
def test_the_second_signature_header_is_no_header_of_ours_or_of_the_connection(api: Any, name: Any) -> None:
    assert pointers(new(api, signature_header=name)) == {"/signature_header"}


def test_the_second_signature_header_is_not_a_custom_one_too(api: Any) -> None:
    both = {"headers": {"X-Sig": "1"}, "signature_header": "x-sig"}
    assert pointers(new(api, **both)) == {"/signature_header"}
    assert pointers(api.patch(made(api, signature_header="X-Sig"), {"headers": {"x-sig": "1"}})) == {"/headers"}
    assert pointers(api.patch(made(api, headers={"X-Sig": "1"}), {"signature_header": "X-Sig"})) == {
        "/signature_header"
    }


def test_a_client_certificate_is_checked_when_it_is_given_and_its_end_is_shown(
    api: Any, authority: trustme.CA, certificate: dict[str, str]
) -> None:
    path = made(api, client_certificate=certificate)
    shown = api.get(path)
    assert set(shown.json()["client_certificate"]) == {
        "subject", "issuer", "fingerprint_sha256", "not_before", "expires_at",
    }  # fmt: skip
    assert "BEGIN" not in shown.content.decode()
    now = datetime.datetime.now(datetime.UTC)
    stale = parts(authority.issue_cert("a.example", not_after=now - datetime.timedelta(days=1)))
    other = parts(authority.issue_cert("a.example"))
    wrong: list[tuple[Any, str]] = [
        ({"certificate": certificate["certificate"]}, "/client_certificate/private_key"),
        ({"private_key": certificate["private_key"]}, "/client_certificate/certificate"),
        ({"certificate": stale[0], "private_key": stale[1]}, "/client_certificate/certificate"),
        ({**certificate, "private_key": other[1]}, "/client_certificate/private_key"),
        ({**certificate, "certificate": "x" * 40_000}, "/client_certificate/certificate"),
        ({**certificate, "passphrase": "x"}, "/client_certificate/passphrase"),
        ("PEM", "/client_certificate"),
    ]
    for value, at in wrong:
        answer = api.patch(path, {"client_certificate": value})
        assert pointers(answer) == {at}
        assert "BEGIN CERTIFICATE-----\nM" not in answer.content.decode()
        assert certificate["private_key"].splitlines()[1] not in answer.content.decode()
    assert api.get(path).json() == shown.json(), "what was refused changed nothing"
    assert pointers(new(api, url="http://a.example/", client_certificate=certificate)) == {"/client_certificate"}
    assert pointers(api.patch(path, {"url": "http://a.example/"})) == {"/url"}
    assert api.patch(path, {"client_certificate": None}).json()["client_certificate"] is None


@pytest.fixture
def mutual(settings: Any, tmp_path: Path, authority: trustme.CA) -> Iterator[MutualServer]:
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    settings.WEBHOOK_CA_FILE = str(tmp_path / "ca.pem")
    server = MutualServer(authority)
    with raw_server(server.handle) as server.port:
        yield server


@pytest.mark.django_db(transaction=True)
def test_a_worker_presents_the_certificate_and_a_new_one_after_it_was_changed(
    api: Any, mutual: MutualServer, authority: trustme.CA, certificate: dict[str, str]
) -> None:
    path = made(api, url=mutual.url, client_certificate=certificate)
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    chain, key = parts(authority.issue_cert("shop.example", common_name="shop-2"))
    api.patch(path, {"client_certificate": {"certificate": chain, "private_key": key}})
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    assert mutual.names == ["shop", "shop-2"]
    assert api.post(f"{path}/test").json()["succeeded"] is True


@pytest.mark.django_db(transaction=True)
def test_a_worker_asks_for_a_token_and_a_failure_is_a_class_of_its_own(api: Any, receiver: Receiver) -> None:
    token = "a-token-that-nobody-may-read"

    def behave(request: Received, number: int) -> Response:
        if request.path == "/token":
            return Response(body=json.dumps({"access_token": token, "expires_in": 60}).encode())
        return Response(401 if request.path == "/broken" else 200, body=request.headers["authorization"].encode())

    receiver.behavior = behave
    auth = {**OAUTH, "token_url": receiver.url("/token")}
    made(api, url=receiver.url("/hook"), auth=auth)
    failing = made(api, url=receiver.url("/hook"), auth={**OAUTH, "token_url": receiver.url("/broken")})
    api.post("/api/events", {"type": "a", "data": 1})
    deliver()
    (hook,) = receiver.of("/hook")
    assert hook.headers["authorization"] == f"Bearer {token}"
    rows = api.get("/api/deliveries").json()["data"]
    assert sorted((row["status"], row["last_error"]) for row in rows) == [
        ("delivered", None), ("retrying", "oauth_failed"),
    ]  # fmt: skip
    assert api.get(failing).json()["last_error"] == "oauth_failed"
    attempt = DeliveryAttempt.objects.get(error="oauth_failed")
    assert attempt.error_detail == "The token URL responded with 401."
    for row in rows:
        assert token not in api.get(f"/api/deliveries/{row['id']}/attempts/1").content.decode()
    text = dump()
    for secret in (token, "very-hidden-one"):
        assert all(form not in text for form in forms(secret))


def test_all_of_it_is_encrypted_moves_to_a_new_key_and_goes_with_the_subscription(
    api: Any, organization: Organization, certificate: dict[str, str], settings: Any
) -> None:
    path = made(api, auth=OAUTH, client_certificate=certificate, secret_type="ed25519", signature_header="X-Sig")
    api.post(f"{path}/secrets", {"secret_type": "ed25519"})
    text = dump()
    for secret in ("very-hidden-one", certificate["private_key"].splitlines()[1], "BEGIN CERTIFICATE", "whsk_"):
        assert secret not in text
    row = Subscription.objects.get()
    before = (row.encrypted_auth, row.encrypted_client_certificate, row.encrypted_secret)
    newest = Fernet.generate_key().decode()
    settings.SECRETS_ENCRYPTION_KEYS = [newest, ENVIRONMENT["SECRETS_ENCRYPTION_KEYS"]]
    out = io.StringIO()
    call_command("rotate_encryption_keys", stdout=out, stderr=io.StringIO())
    assert out.getvalue().startswith("1 subscriptions seen, 4 values")
    settings.SECRETS_ENCRYPTION_KEYS = [newest]
    row.refresh_from_db()
    assert isinstance(open_auth(row.encrypted_auth), ClientCredentials)
    assert "PRIVATE KEY" in decrypt(row.encrypted_client_certificate)
    assert decrypt(row.encrypted_secret).startswith("whsk_")
    assert not set(before) & {row.encrypted_auth, row.encrypted_client_certificate, row.encrypted_secret}
    subscriptions.delete(row)
    row.refresh_from_db()
    assert (row.encrypted_auth, row.encrypted_client_certificate, row.encrypted_secret) == ("", "", "")
    assert row.encrypted_previous_secrets == row.secret_details == []


def test_a_change_is_in_the_audit_log_by_the_names_of_its_fields(api: Any, certificate: dict[str, str]) -> None:
    path = made(api)
    api.patch(path, {"auth": OAUTH, "client_certificate": certificate, "signature_header": "X-Sig"})
    entry = AuditEntry.objects.get(action="subscription.change")
    assert entry.detail == {"fields": ["auth", "client_certificate", "signature_header"]}


def test_an_inbox_has_no_credentials(api: Any, certificate: dict[str, str]) -> None:
    inbox = {"kind": "inbox", "inbox": "orders", "event_types": ["*"]}
    for name, value in (("auth", BASIC), ("client_certificate", certificate), ("signature_header", "X-Sig")):
        assert f"/{name}" in pointers(api.post(PATH, {**inbox, name: value}))
    path = f"{PATH}/{api.post(PATH, inbox).json()['id']}"
    assert pointers(api.patch(path, {"auth": BASIC})) == {"/auth"}
