"""The commands of docs/event-types.md do what the page says."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

GUIDE = (Path(__file__).parents[2] / "docs" / "event-types.md").read_text()


def commands(subscription: str) -> list[tuple[str, str, str]]:
    """Return the method, the path, and the body of each `curl` of the page."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", GUIDE, re.DOTALL):
        words = shlex.split(block.replace("\\\n", " "), comments=True)
        method = words[words.index("-X") + 1] if "-X" in words else "POST"
        [url] = [word for word in words if word.startswith("localhost:8000")]
        path = url.removeprefix("localhost:8000").replace("$SUBSCRIPTION", subscription)
        found.append((method, path, words[words.index("-d") + 1]))
    return found


@pytest.mark.django_db
def test_every_command_works_in_the_order_of_the_page(api: Any) -> None:
    subscription, answers = "", {}
    for position in range(len(commands(""))):
        method, path, body = commands(subscription)[position]
        answer = api.request(method, path, raw=body.encode())
        assert answer.status_code in {200, 201}, (path, answer.content)
        answers[path.rsplit("/", 1)[-1]] = answer.json()
        if path == "/api/subscriptions":
            subscription = answer.json()["id"]
    assert len(answers) == 6
    shown = answers["preview"]
    [example] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL) if "would" in text]
    assert {**shown, "request": {**shown["request"], "headers": None}} == {
        **example, "request": {**example["request"], "headers": None},
    }  # fmt: skip
    assert all(header in shown["request"]["headers"] for header in example["request"]["headers"])
    event = {"type": "order.created", "data": {"order": 4711}}
    made = api.post(f"/api/subscriptions/{subscription}/preview", event).json()["request"]["body"]
    assert f"`{made}`" in GUIDE
    refused = api.post("/api/events", {"type": "order.created", "data": {"order": "x"}})
    [error] = refused.json()["errors"]
    [example] = [json.loads(text) for text in re.findall(r"```json\n(.*?)```", GUIDE, re.DOTALL) if "status" in text]
    assert [error] == example["errors"]
    choices = api.get("/api/event-types?format=choices").json()
    assert f"`{json.dumps(choices[:1])}`" in GUIDE
