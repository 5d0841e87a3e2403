"""Channels: an event reaches the subscriptions that share one with it, and those without channels, at both doors."""

from __future__ import annotations

from typing import Any

import pytest

from events.models import Event
from orgs.models import Organization
from tests.conftest import ApiClient
from tests.webhooks.helpers import fan_out, statuses, subscribe
from tests.webhooks.test_recovery import LONG_AGO
from webhooks.upkeep import recovery

pytestmark = pytest.mark.django_db


def test_any_of_the_channels(organization: Organization, api: ApiClient) -> None:
    everything, eu, both, filtered = (
        subscribe(organization, channels=channels, filter=conditions)
        for channels, conditions in (((), None), (["eu"], None), (["eu", "us"], None), (["eu"], {"a": 1}))
    )
    sent = [
        {"type": "a.b", "data": {"a": 1}},
        {"type": "a.b", "data": {"a": 1}, "channels": ["eu", "project:7", "eu"]},
        {"type": "a.b", "data": {"a": 2}, "channels": ["eu"], "dedup_id": "1"},
        {"type": "a.b", "data": {"a": 1}, "channels": ["us"]},
        {"type": "a.b", "data": {"a": 1}, "channels": []},
        {"type": "a.b", "data": {"a": 1}, "channels": None},
    ]
    ids = [api.post("/api/events", event).json()["id"] for event in sent[:3]]
    batch = api.post("/api/events/batch", sent[3:]).json()
    assert batch["accepted"] == 3
    fan_out()
    assert [len(statuses(subscription=one)) for one in (everything, eu, both, filtered)] == [6, 2, 3, 1]
    shown = [api.get(f"/api/events/{event_id}").json()["channels"] for event_id in ids]
    assert shown == [[], ["eu", "project:7"], ["eu"]]
    assert Event.objects.filter(channels=None).count() == 3
    missed = subscribe(organization, channels=["us"])
    recovery.advance(recovery.start(missed, LONG_AGO).id)
    assert len(statuses(subscription=missed)) == 1


def test_channels_are_part_of_what_a_dedup_id_stands_for(api: ApiClient) -> None:
    event = {"type": "a.b", "data": 1, "dedup_id": "x", "channels": ["a", "b"]}
    first = api.post("/api/events", event).json()["id"]
    same = api.post("/api/events", {**event, "channels": ["b", "a"]})
    assert (same.status_code, same.json()["id"]) == (200, first)
    assert api.post("/api/events", {**event, "channels": ["a"]}).status_code == 409
    assert api.post("/api/events", {**event, "channels": []}).status_code == 409


@pytest.mark.parametrize(
    ("channels", "pointer"),
    [
        ("eu", "/channels"),
        ({}, "/channels"),
        ([f"c{n}" for n in range(11)], "/channels"),
        (["a", ""], "/channels/1"),
        (["a,b"], "/channels/0"),
        (["a\n"], "/channels/0"),
        (["é"], "/channels/0"),
        (["x" * 129], "/channels/0"),
        ([1], "/channels/0"),
    ],
)
def test_what_is_refused(api: ApiClient, channels: Any, pointer: str) -> None:
    before = Event.objects.count()
    for path, body in (
        ("/api/events", {"type": "a.b", "data": 1, "channels": channels}),
        ("/api/subscriptions", {"url": "https://a.example/", "event_types": ["*"], "channels": channels}),
    ):
        answer = api.post(path, body)
        assert answer.status_code == 400
        assert answer.json()["errors"][0]["pointer"] == pointer
    item = api.post("/api/events/batch", [{"type": "a.b", "data": 1, "channels": channels}]).json()["data"][0]
    assert item["errors"][0]["pointer"] == pointer
    assert Event.objects.count() == before


def test_channels_of_a_subscription_are_changed(api: ApiClient) -> None:
    new = {"url": "https://a.example/", "event_types": ["*"], "channels": ["eu", "us", "eu"]}
    made = api.post("/api/subscriptions", new).json()
    assert made["channels"] == ["eu", "us"]
    path = f"/api/subscriptions/{made['id']}"
    assert api.patch(path, {"channels": []}).json()["channels"] == []
    assert api.get(path).json()["channels"] == []
