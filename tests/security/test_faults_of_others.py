"""Faults that systems of this kind really had, by the numbers of the list (8, 9 and 22: test_keys, test_abuse)."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.db import connection

from events.models import Event
from orgs.models import Organization
from tests.api.helpers import assert_problem
from tests.security.egress import STRICT, allowing, send
from tests.security.listeners import Names, listen
from tests.servers import postgres
from webhooks.destinations.outcome import Failure

ROOT = Path(__file__).resolve().parents[2]


def test_fault_10_inner_addresses_redirects_and_names_that_only_begin_like_a_public_one(db: None) -> None:
    names = Names()
    names.records = {"public.example": ["127.0.0.2"], "public.example.evil.example": ["127.0.0.1"]}
    with names.running() as server, listen("127.0.0.2") as out, listen("127.0.0.1", out.port) as inside:
        out.answer = (
            f"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{out.port}/\r\ncontent-length: 0\r\n\r\n".encode()
        )
        egress = allowing("127.0.0.2/32", dns_servers=(server,))
        redirected, alike = send(
            egress, f"http://public.example:{out.port}/", f"http://public.example.evil.example:{out.port}/"
        )
        [inner] = send(STRICT, f"http://127.0.0.1:{out.port}/")
    assert redirected.failure is Failure.REDIRECT
    assert alike.failure is Failure.ADDRESS_NOT_ALLOWED
    assert inner.failure is Failure.ADDRESS_NOT_ALLOWED
    assert inside.connections == 0


def test_fault_15_a_dedup_id_is_the_organization_s_and_its_content_is_compared(
    api: Any, other_api: Any, organization: Organization, other_organization: Organization
) -> None:
    event = {"type": "a", "data": {"n": 1}, "dedup_id": "same"}
    first = api.post("/api/events", event)
    assert first.status_code == 202
    again = api.post("/api/events", event)
    assert (again.status_code, again.json()["id"]) == (200, first.json()["id"])
    assert_problem(api.post("/api/events", {**event, "data": {"n": 2}}), 409, "/dedup_id")
    assert_problem(api.post("/api/events", {**event, "type": "b"}), 409, "/dedup_id")
    theirs = other_api.post("/api/events", {**event, "data": {"n": 3}})
    assert theirs.status_code == 202
    assert theirs.json()["id"] != first.json()["id"]
    assert Event.objects.count() == 2


@pytest.mark.django_db(transaction=True)
def test_fault_15_another_process_knows_the_dedup_id_too(api: Any, organization: Organization) -> None:
    event = {"type": "a", "data": {"n": 1}, "dedup_id": "same"}
    first = api.post("/api/events", event).json()["id"]
    code = """
import sys, uuid, django
django.setup()
from events.ingest import ingest
from events.payload import NewEvent
result = ingest(uuid.UUID(sys.argv[1]), NewEvent("a", '{"n": 1}', "same"))
print(result.status.value, result.event_id)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(organization.id)],
        cwd=ROOT,
        env={**os.environ, "DATABASE_URL": postgres.url(connection.settings_dict["NAME"])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == f"duplicate {first}\n", done.stderr
