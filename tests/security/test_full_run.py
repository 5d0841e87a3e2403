"""A full run with real processes that log all they can: no secret reaches a log or Redis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet
from django.db import connection

from devstack import processes
from devstack.http_receiver import Received, Receiver, Response
from devstack.waiting import wait_until
from orgs.keys import create_api_key
from orgs.models import Organization
from tests.security.test_abuse import redis_text
from tests.servers import ENVIRONMENT, postgres


def _moody(request: Received, number: int) -> Response:
    """Fail the first time, and hold a secret in the answer."""
    return Response(status=500 if number == 1 else 200, body=b"receiver-answer-text")


@pytest.mark.django_db(transaction=True)
def test_no_secret_key_or_payload_reaches_a_log_or_redis(organization: Organization, tmp_path: Path) -> None:
    new_key = Fernet.generate_key().decode()
    env = {
        "DATABASE_URL": postgres.url(connection.settings_dict["NAME"]),
        "LOG_LEVEL": "DEBUG",
        "GUNICORN_LOG_LEVEL": "debug",
        "DELIVERY_RETRY_SCHEDULE": "0s,100ms,100ms",
        "BREAKER_THRESHOLD": "0",
        "SECRETS_ENCRYPTION_KEYS": f"{new_key},{ENVIRONMENT['SECRETS_ENCRYPTION_KEYS']}",
    }
    _, key = create_api_key(organization)
    secrets = [key, new_key, ENVIRONMENT["SECRETS_ENCRYPTION_KEYS"], ENVIRONMENT["SECRET_KEY"], "receiver-answer-text"]
    seen_in_redis = []
    web_log, worker_log = tmp_path / "web.log", tmp_path / "worker.log"
    web, base = processes.web(web_log, env=env, workers=1)
    worker = processes.worker(worker_log, env)
    try:
        with Receiver(_moody) as receiver, httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
            as_owner = {"X-API-Key": key}

            def call(method: str, path: str, body: Any = None, **headers: str) -> Any:
                response = client.request(method, path, json=body, headers={**as_owner, **headers})
                assert response.status_code < 500, response.text
                return response.json() if response.content else {}

            made = call("POST", "/api/keys", {"name": "second"})
            rotated = call("POST", f"/api/keys/{made['id']}/rotate", {"overlap_seconds": 0})
            secrets += [made["key"], rotated["key"]]
            call("DELETE", f"/api/keys/{rotated['id']}")
            for wrong in (
                made["key"],
                rotated["key"],
                "trk_ABCDEFGHJKLM_guessed-secret-guessed-secret-guessed",
                "garbage-key-value",
            ):
                refused = client.get("/api/me", headers={"X-API-Key": wrong})
                assert refused.status_code == 401
                assert wrong not in refused.text
                client.get("/api/me", headers={"Authorization": f"Bearer {wrong}"})
            secrets += ["guessed-secret-guessed-secret", "garbage-key-value"]

            headers = {"Authorization": "Bearer header-value-hidden", "X-Other": "other-value-hidden"}
            urls = {
                "fails first": receiver.url("/moody"),
                "nobody there": "http://127.0.0.1:9999/gone",
                "refused": "http://localhost.invalid/none",
            }
            subscriptions = {
                name: call("POST", "/api/subscriptions", {"url": url, "event_types": ["*"], "headers": headers})
                for name, url in urls.items()
            }
            secrets += ["header-value-hidden", "other-value-hidden"]
            secrets += [one["secret"] for one in subscriptions.values()]
            bad = {"url": urls["fails first"], "event_types": ["*"], "headers": {"X-Bad": "bad-value-hidden\r\n"}}
            assert client.post("/api/subscriptions", json=bad, headers=as_owner).status_code == 400
            secrets.append("bad-value-hidden")

            event = {"type": "a.b", "data": {"card": "payload-is-private"}, "dedup_id": "once"}
            call("POST", "/api/events", event)
            call("POST", "/api/events", event)
            call("POST", "/api/events", {**event, "data": "payload-is-private"})
            call(
                "POST",
                "/api/events/batch",
                [{"type": "a", "data": "payload-is-private"}, {"nonsense": "payload-is-private"}],
            )
            client.post("/api/events", content=b'{"type":"a","data":"payload-is-private', headers=as_owner)
            secrets.append("payload-is-private")
            seen_in_redis.append(redis_text())
            receiver.wait_for(3, "/moody", 60)
            path = f"/api/subscriptions/{subscriptions['fails first']['id']}"
            new = call("POST", f"{path}/rotate-secret", {"overlap_seconds": 60})
            secrets.append(new["secret"])
            processes.manage("rotate_encryption_keys", env=env)
            call("PATCH", path, {"headers": {"X-Other": "changed-value-hidden"}})
            secrets.append("changed-value-hidden")
            call("POST", "/api/events", {"type": "a.b", "data": "payload-is-private"})

            def settled() -> bool:
                rows = call("GET", "/api/deliveries?limit=200")["data"]
                return len(rows) == 9 and all(row["status"] in {"delivered", "failed"} for row in rows)

            wait_until(settled, "deliveries did not settle")
            failed = call("GET", "/api/deliveries?status=failed")["data"]
            assert failed
            call("POST", f"/api/deliveries/{failed[0]['id']}/retry")
            wait_until(settled, "the retry did not settle")
            assert any(one.headers.get("x-other") == "changed-value-hidden" for one in receiver.requests)
            seen_in_redis.append(redis_text())
    finally:
        worker.stop(30)
        web.stop(30)
    logs = {"web": web_log.read_text(), "worker": worker_log.read_text(), "Redis": "\n".join(seen_in_redis)}
    assert '"event":"request"' in logs["web"].replace(" ", ""), "the web process logs"
    assert "event_processed" in logs["worker"], "the worker logs"
    assert "rq:" in logs["Redis"]
    found = [
        f"{secret[:12]}… in {name}: {text[max(0, text.index(form) - 200) : text.index(form) + 60]}"
        for secret in secrets
        for form in {secret, secret.removeprefix("whsec_"), secret.split("_", 2)[-1]}
        for name, text in logs.items()
        if form in text
    ]
    assert not found
