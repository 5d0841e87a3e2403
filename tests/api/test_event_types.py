"""The catalog of event types, and what an organization's strictness refuses, through both doors."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from events.models import Event, EventType
from orgs.models import AuditEntry, Organization
from tests.api.helpers import assert_problem
from webhooks.models import Subscription

ORDER = {
    "type": "object",
    "required": ["order"],
    "properties": {"order": {"type": "integer"}, "lines/all": {"type": "array", "items": {"type": "string"}}},
}


def make(api: Any, name: str, **members: Any) -> dict[str, Any]:
    """Create an event type and return it."""
    created = api.post("/api/event-types", {"name": name, **members})
    assert created.status_code == 201, created.content
    document: dict[str, Any] = created.json()
    assert created["Location"].endswith(f"/api/event-types/{document['id']}")
    return document


def be(api: Any, strictness: str) -> None:
    """Set the organization's strictness."""
    assert api.patch("/api/event-types/settings", {"strictness": strictness}).json() == {"strictness": strictness}


def send(api: Any, type_: str, data: Any = 1) -> Any:
    """Send an event."""
    return api.post("/api/events", {"type": type_, "data": data})


def test_an_event_type_is_created_read_changed_and_deleted(api: Any) -> None:
    made = make(api, "order.created", description="Placed.", schema=ORDER, examples=[{"order": 1}])
    assert (made["name"], made["version"], made["archived"], made["schema"]) == ("order.created", 1, False, ORDER)
    path = f"/api/event-types/{made['id']}"
    assert api.get(path).json() == made
    assert api.get("/api/event-types?name=order.created").json()["data"] == [made]
    assert api.patch(path, {"description": "Placed by a customer."}).json()["version"] == 1
    assert api.patch(path, {"schema": {**ORDER, "required": []}}).json()["version"] == 2
    assert api.patch(path, {"archived": True}).json()["archived"] is True
    assert api.get("/api/event-types?archived=false").json()["data"] == []
    assert api.patch(path, {"archived": False, "schema": None}).json()["schema"] is None
    assert_problem(api.patch(path, {"name": "other"}), 400, "/name")
    assert api.delete(path).status_code == 204
    assert_problem(api.get(path), 404)
    actions = AuditEntry.objects.order_by("created_at").values_list("action", flat=True)
    assert list(actions) == ["event_type.create", *["event_type.change"] * 4, "event_type.delete"]


def test_names_are_unique_in_an_organization_and_nobody_else_sees_them(api: Any, other_api: Any) -> None:
    made = make(api, "order.created")
    problem = assert_problem(api.post("/api/event-types", {"name": "order.created"}), 409, "/name")
    assert problem["code"] == "event_type_exists"
    make(other_api, "order.created")
    assert_problem(other_api.get(f"/api/event-types/{made['id']}"), 404)
    assert_problem(other_api.delete(f"/api/event-types/{made['id']}"), 404)


def test_the_catalog_is_bounded(api: Any, settings: Any) -> None:
    settings.MAX_EVENT_TYPES = 1
    make(api, "a")
    assert assert_problem(api.post("/api/event-types", {"name": "b"}), 409)["code"] == "too_many_event_types"
    document = {"webhooks": {"b": {"post": {}}}}
    assert assert_problem(api.post("/api/event-types/import", document), 409)["code"] == "too_many_event_types"


def test_choices_are_a_bare_array_of_what_is_in_use(api: Any) -> None:
    for name in ("order.paid", "com.example/order:created-v2", "order.created"):
        make(api, name)
    make(api, "gone", archived=True)
    names = ["com.example/order:created-v2", "order.created", "order.paid"]
    assert api.get("/api/event-types?format=choices").json() == [{"id": name, "name": name} for name in names]


def test_free_takes_any_type_known_only_those_of_the_catalog(api: Any) -> None:
    assert send(api, "anything").status_code == 202
    kept = make(api, "order.created", schema=ORDER)
    be(api, "known")
    assert send(api, "order.created", "not what the schema says").status_code == 202
    problem = assert_problem(send(api, "anything"), 400, "/type")
    assert "/api/event-types" in problem["errors"][0]["detail"]
    api.patch(f"/api/event-types/{kept['id']}", {"archived": True})
    assert_problem(send(api, "order.created"), 400, "/type")
    be(api, "free")
    assert send(api, "anything").status_code == 202
    assert Event.objects.count() == 3


def test_the_schema_is_enforced_with_pointers_into_data(api: Any) -> None:
    made = make(api, "order.created", schema=ORDER)
    make(api, "order.noted")
    be(api, "schema")
    assert send(api, "order.created", {"order": 4711}).status_code == 202
    assert send(api, "order.noted", "anything").status_code == 202  # it has no schema
    problem = assert_problem(send(api, "order.created", {"order": "4711", "lines/all": ["a", 1]}), 400, "/data/order")
    assert {error["pointer"] for error in problem["errors"]} == {"/data/lines~1all/1", "/data/order"}
    problem = assert_problem(send(api, "order.created", {}), 400, "/data")
    assert "order" in problem["errors"][0]["detail"]
    # A change of the schema counts for the next event, in every process.
    api.patch(f"/api/event-types/{made['id']}", {"schema": {"type": "string"}})
    assert_problem(send(api, "order.created", {"order": 4711}), 400, "/data")
    assert send(api, "order.created", "text").status_code == 202
    assert Event.objects.count() == 3


def test_of_a_batch_only_what_does_not_fit_is_refused(api: Any) -> None:
    make(api, "order.created", schema=ORDER)
    be(api, "schema")
    batch = [{"type": "order.created", "data": {"order": 1}}, {"type": "order.created", "data": {"order": "1"}},
             {"type": "nonsense", "data": 1}, {"type": "!", "data": 1}]  # fmt: skip
    answer = api.post("/api/events/batch", batch)
    assert answer.status_code == 202
    became = answer.json()["data"]
    assert [item["status"] for item in became] == ["accepted", "invalid", "invalid", "invalid"]
    assert [item["errors"][0]["pointer"] for item in became[1:]] == ["/data/order", "/type", "/type"]
    assert api.post("/api/events/batch", batch[1:]).status_code == 200
    assert Event.objects.count() == 1


def test_another_process_s_change_counts_for_the_next_event(api: Any, organization: Organization) -> None:
    """What a process remembers of the key and of the catalog is checked where the event is stored."""
    assert send(api, "order.created").status_code == 202
    Organization.objects.filter(pk=organization.pk).update(event_type_strictness="known", catalog_version=1)
    assert_problem(send(api, "order.created"), 400, "/type")
    EventType.objects.create(organization=organization, name="order.created")
    Organization.objects.filter(pk=organization.pk).update(catalog_version=2)
    assert send(api, "order.created").status_code == 202


def test_data_that_only_a_slower_parser_takes_is_checked_or_refused(api: Any) -> None:
    make(api, "a", schema={"properties": {"n": {"type": "number"}}})
    be(api, "schema")
    for text in (b'{"n":1e400}', b'{"n":' + b"9" * 5000 + b"}", b'{"n":"\\ud800"}'):
        answer = api.post("/api/events", raw=b'{"type":"a","data":' + text + b"}")
        assert answer.status_code in {202, 400}, answer.content


RECURSIVE = {"$defs": {"n": {"type": "object", "properties": {"next": {"$ref": "#/$defs/n"}}}}, "$ref": "#/$defs/n"}
TREE = {"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}, "all": {"items": {"$ref": "#"}}}}
GOOD = [True, {}, ORDER, RECURSIVE, TREE, {"$schema": "https://json-schema.org/draft/2020-12/schema"},
        {"$anchor": "me", "items": {"$ref": "#me"}}, {"properties": {"$ref": {"type": "string"}}},
        {"enum": ["a"] * 1, "default": {"$id": 5}}]  # fmt: skip


@pytest.mark.parametrize("schema", GOOD, ids=lambda schema: json.dumps(schema)[:40])
def test_schemas_that_are_taken(api: Any, schema: Any) -> None:
    made = make(api, "a", schema=schema)
    assert made["schema"] == schema


def _doubling(levels: int) -> dict[str, Any]:
    """Return a schema of some hundred bytes that asks for 2^levels checks of one value."""
    defs: dict[str, Any] = {f"a{n}": {"allOf": [{"$ref": f"#/$defs/a{n + 1}"}] * 2} for n in range(levels)}
    return {"$defs": {**defs, f"a{levels}": {"type": "string"}}, "$ref": "#/$defs/a0"}


def _chain(levels: int) -> dict[str, Any]:
    """Return a schema with more references, each leading to the next, than Python has room for on its stack."""
    defs: dict[str, Any] = {f"a{n}": {"$ref": f"#/$defs/a{n + 1}"} for n in range(levels)}
    return {"$defs": {**defs, f"a{levels}": {}}, "$ref": "#/$defs/a0"}


_DEEP = {"properties": {"x": {"$ref": "#/$defs/a"}}}
BAD_SCHEMAS: dict[str, tuple[Any, str]] = {
    "no schema": ({"type": "nonsense"}, "/schema/type"),
    "a number": (5, "/schema"),
    "an array": ([], "/schema"),
    "a dialect that is no text": ({"$schema": 5}, "/schema/$schema"),
    "another dialect": ({"$schema": "http://json-schema.org/draft-07/schema#"}, "/schema/$schema"),
    "a file": ({"$ref": "file:///etc/passwd"}, "/schema/$ref"),
    "a URL": ({"items": {"$ref": "http://169.254.169.254/latest"}}, "/schema/items/$ref"),
    "the dialect itself": ({"$ref": "https://json-schema.org/draft/2020-12/schema"}, "/schema/$ref"),
    "an id inside": ({"$defs": {"a": {"$id": "http://a.example/"}}}, "/schema/$defs/a/$id"),
    "nothing there": ({"$ref": "#/$defs/none"}, "/schema"),
    "itself": ({"$ref": "#"}, "/schema"),
    "a dynamic reference": ({"$dynamicRef": "#a"}, "/schema/$dynamicRef"),
    "no expression": ({"pattern": "("}, "/schema/pattern"),
    "look-around": ({"pattern": "(?=a)b"}, "/schema/pattern"),
    "an expression of a million states": ({"pattern": "((a{100}){100}){100}"}, "/schema/pattern"),
    "a chain of a thousand": (_chain(1000), "/schema"),
    "2^40 checks here": (_doubling(40), "/schema"),
    "2^60 checks below": ({"$defs": {"a": {"anyOf": [_DEEP, _DEEP]}}, "$ref": "#/$defs/a"}, "/schema"),
    "too long": ({"description": "x" * 70_000}, "/schema"),
    "too many values": ({"enum": list(range(10_000))}, "/schema"),
}


@pytest.mark.parametrize("name", BAD_SCHEMAS)
def test_schemas_that_are_refused(api: Any, name: str) -> None:
    schema, pointer = BAD_SCHEMAS[name]
    began = time.process_time()
    assert_problem(api.post("/api/event-types", {"name": "a", "schema": schema}), 400, pointer)
    assert time.process_time() - began < 5  # of this process's own time
    assert not EventType.objects.exists()


@pytest.mark.parametrize("name", ["", ".", "a..b", "a b", "a.*", "é", "a" * 256, 5, None])
def test_names_that_are_refused(api: Any, name: Any) -> None:
    assert_problem(api.post("/api/event-types", {"name": name}), 400, "/name")


@pytest.mark.parametrize("type_", ["com.example/order:created-v2", "a-b", "urn:x:y", "/", "order.line-item.added"])
def test_types_have_the_characters_that_others_use(api: Any, type_: str) -> None:
    assert send(api, type_).status_code == 202
    assert [event["type"] for event in api.get(f"/api/events?type={type_}").json()["data"]] == [type_]


def test_events_are_listed_by_what_subscriptions_match(api: Any, subscription: Subscription) -> None:
    for type_ in ("order", "order.created", "order.line.added", "orders.created", "order-x.y", "order_created"):
        send(api, type_)

    def listed(pattern: str, more: str = "") -> set[str]:
        return {event["type"] for event in api.get(f"/api/events?type={pattern}{more}").json()["data"]}

    assert listed("order.*") == listed("order.*", "&undelivered=true") == {"order.created", "order.line.added"}
    assert listed("order_created") == {"order_created"}
    assert listed("order") == {"order"}
    assert len(listed("*")) == 6
    for pattern in ("order*", "*.created", "or%25", "a..b"):
        assert_problem(api.get(f"/api/events?type={pattern}"), 400, "?type")


OPENAPI = {
    "openapi": "3.1.0",
    "info": {"title": "Shop", "version": "1"},
    "webhooks": {
        "order.created": {
            "post": {
                "summary": "Placed.",
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {"$ref": "#/components/schemas/Order"},
                            "example": {"order": 1},
                        }
                    }
                },
            }
        },
        "order.paid": {
            "post": {
                "requestBody": {
                    "content": {
                        "application/json": {
                            "schema": {
                                "type": "object",
                                "properties": {
                                    "type": {"const": "order.paid"},
                                    "data": {"$ref": "#/components/schemas/Payment"},
                                },
                            },
                            "examples": {"card": {"$ref": "#/components/examples/Card"}},
                        }
                    }
                }
            }
        },
        "order.sent": {"$ref": "#/components/pathItems/order~1sent"},
    },
    "components": {
        "examples": {"Card": {"value": {"type": "order.paid", "data": {"amount": 5}}}},
        "pathItems": {"order/sent": {"post": {"requestBody": {"$ref": "#/components/requestBodies/Sent"}}}},
        "requestBodies": {
            "Sent": {
                "content": {
                    "application/json": {
                        "schema": {
                            "allOf": [
                                {"$ref": "#/components/schemas/Envelope"},
                                {"properties": {"data": {"$ref": "#/components/schemas/Parcel0"}}},
                            ]
                        }
                    }
                }
            }
        },
        "schemas": {
            "Order": {
                "type": "object",
                "properties": {"order": {"type": "integer"}, "part": {"$ref": "#/components/schemas/Order"}},
            },
            "Payment": {"type": "object", "required": ["amount"]},
            "Envelope": {"required": ["type", "data"], "properties": {"type": {"type": "string"}, "data": {}}},
            # A long way from one to the next.
            **{f"Parcel{n}": {"properties": {"inner": {"$ref": f"#/components/schemas/Parcel{n + 1}"}}}
               for n in range(500)},
            "Parcel500": {},
        }
    },
}  # fmt: skip


def test_the_webhooks_of_an_openapi_document_become_event_types(api: Any) -> None:
    make(api, "order.paid", description="old")
    done = api.post("/api/event-types/import", OPENAPI).json()["data"]
    assert [(one["name"], one["status"]) for one in done] == [
        ("order.created", "created"), ("order.paid", "changed"), ("order.sent", "created"),
    ]  # fmt: skip
    again = api.post("/api/event-types/import", OPENAPI).json()["data"]
    assert [one["status"] for one in again] == ["unchanged"] * 3
    created = api.get(f"/api/event-types/{done[0]['id']}").json()
    assert (created["description"], created["examples"]) == ("Placed.", [{"order": 1}])
    paid = api.get(f"/api/event-types/{done[1]['id']}").json()
    assert (paid["version"], paid["examples"]) == (2, [{"amount": 5}])
    be(api, "schema")
    assert send(api, "order.created", {"order": 1, "part": {"order": 2}}).status_code == 202
    assert_problem(send(api, "order.created", {"part": {"order": "2"}}), 400, "/data/part/order")
    assert_problem(send(api, "order.paid", {}), 400, "/data")
    sent = api.get(f"/api/event-types/{done[2]['id']}").json()["schema"]
    assert sent["allOf"] == [{}, {"$ref": "#/$defs/Parcel0"}], "those of `data` of both parts"
    assert send(api, "order.sent", {"inner": {"inner": 1}}).status_code == 202


def test_an_import_changes_what_differs_also_where_python_sees_no_difference(api: Any) -> None:
    def importing(schema: Any) -> str:
        media = {} if schema is None else {"schema": schema}
        content = {"application/json": media}
        document = {"openapi": "3.1.0", "webhooks": {"order.paid": {"post": {"requestBody": {"content": content}}}}}
        (done,) = api.post("/api/event-types/import", document).json()["data"]
        return str(done["status"])

    assert importing({"const": 1}) == "created"
    first = EventType.objects.get()
    assert importing({"const": True}) == "changed"
    assert importing({"const": True}) == "unchanged"
    assert importing(None) == "changed"
    assert importing(None) == "unchanged"
    row = EventType.objects.get()
    assert row.schema is None
    assert EventType.objects.filter(schema__isnull=True).exists()
    assert (row.version, row.created_at) == (3, first.created_at)
    assert row.updated_at > first.updated_at


BAD_DOCUMENTS: list[tuple[Any, str]] = [
    ({}, "/webhooks"),
    ({"webhooks": []}, "/webhooks"),
    ({"webhooks": {"a b": {"post": {}}}}, "/webhooks/a b"),
    ({"webhooks": {"good": {"post": {}}, "bad": 5}}, "/webhooks/bad"),
    ({"webhooks": {"a": {"post": {"requestBody": {"content": {"application/json": {"schema":
        {"$ref": "#/components/schemas/None"}}}}}}}}, "/webhooks/a"),
    ({"webhooks": {"a": {"post": {"requestBody": {"content": {"application/json": {"schema":
        {"$ref": "http://a.example/schema"}}}}}}}}, "/webhooks/a"),
    ({"webhooks": {"a": {"post": {"requestBody": {"$ref": "#/components/requestBodies/None"}}}}}, "/webhooks/a"),
    ({"webhooks": {"a": {"$ref": "http://a.example/webhook"}}}, "/webhooks/a"),
    ({"webhooks": {"a": {"$ref": "#/webhooks/a"}}}, "/webhooks/a"),
]  # fmt: skip


@pytest.mark.parametrize(("document", "pointer"), BAD_DOCUMENTS)
def test_a_document_that_can_t_be_imported_changes_nothing(api: Any, document: Any, pointer: str) -> None:
    assert_problem(api.post("/api/event-types/import", document), 400, pointer)
    assert not EventType.objects.exists()
