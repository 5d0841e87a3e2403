"""The OpenAPI 3.1 schema: valid, complete, and its examples are what it says they are."""

from __future__ import annotations

import datetime
import inspect
import json
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from triggers_client import NewEvent
from triggers_client import operations as client_operations
from triggers_client.calls import Call, ListCall

from events import cloudevents
from orgs.models import Organization
from tests.api.helpers import beat
from tests.conftest import ApiClient
from tests.project.routes import api_routes
from tests.webhooks.helpers import fan_out_batch
from webhooks.destinations.formats import render
from webhooks.destinations.http.endpoint import Endpoint
from webhooks.models import FORMATS
from webhooks.outgoing import SingleOutgoing

ROOT = Path(__file__).resolve().parents[2]
METHODS = ("get", "post", "patch", "put", "delete")
Found = tuple[str, str, dict[str, Any]]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    """Return the schema as it is served."""
    document: dict[str, Any] = ApiClient(None).get("/api/schema").json()
    return document


def operations(schema: dict[str, Any]) -> list[Found]:
    """Return path, method and operation of everything that is described."""
    return [
        (path, method, item[method]) for path, item in schema["paths"].items() for method in METHODS if method in item
    ]


def resolve(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Follow a local reference."""
    while "$ref" in part:
        found: Any = schema
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step.replace("~1", "/").replace("~0", "~")]
        part = found
    return part


def validator(schema: dict[str, Any], part: dict[str, Any]) -> Draft202012Validator:
    """Return a validator of one of the schema's parts."""
    registry: Registry[Any] = Registry().with_resource("urn:api", Resource(contents=schema, specification=DRAFT202012))
    pointed = json.loads(json.dumps(part).replace('"#/', '"urn:api#/'))
    return Draft202012Validator(pointed, registry=registry, format_checker=FormatChecker())


def test_the_schema_is_valid_openapi_3_1(schema: dict[str, Any]) -> None:
    assert schema["openapi"].startswith("3.1.")
    assert [error.message for error in OpenAPIV31SpecValidator(schema).iter_errors()] == []


def test_every_route_and_method_is_described_and_nothing_else(schema: dict[str, Any]) -> None:
    actual = {
        (path, method.lower())
        for path, scopes in api_routes().items()
        if path not in {"/api/schema", "/api/docs", "/api/problems", "/api/problems/{code}"}
        for method in scopes or {"GET"}
    }
    assert {(path, method) for path, method, _ in operations(schema)} == actual


def test_every_operation_says_what_it_does_and_every_answer_what_it_means(schema: dict[str, Any]) -> None:
    ids = [operation["operationId"] for _, _, operation in operations(schema)]
    assert len(set(ids)) == len(ids)
    known_tags = {tag["name"] for tag in schema["tags"]}
    for path, method, operation in operations(schema):
        where = f"{method} {path}"
        assert operation["summary"], where
        assert operation["description"], where
        assert set(operation["tags"]) <= known_tags, where
        for status, answer in operation["responses"].items():
            resolved = resolve(schema, answer)
            assert resolved["description"], (where, status)
            assert {"X-Request-Id", "X-Response-Time"} <= set(resolved["headers"]), (where, status)
            if int(status) >= 400 and "health" not in path:
                assert set(resolved["content"]) == {"application/problem+json"}, (where, status)


# Their parameters or bodies name an inbox, which may not exist.
NAME_AN_INBOX = {"/api/inbox", "/api/inbox/stream", "/api/inbox/ack", "/api/inbox/nack", "/api/inbox/extend"}


def test_every_error_that_an_operation_can_give_is_described(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        where, statuses = f"{method} {path}", set(operation["responses"])
        if "health" in path:
            continue
        assert {"400", "401", "414", "429", "500", "503"} <= statuses, where
        assert ("404" in statuses) is ("{" in path or path in NAME_AN_INBOX), where
        assert ({"413", "415"} <= statuses) is ("requestBody" in operation), where
        assert ("403" in statuses) is (path != "/api/me"), where
        assert operation["security"], where
        assert any(status.startswith("2") for status in statuses), where
    conflicts = {operation["operationId"] for _, _, operation in operations(schema) if "409" in operation["responses"]}
    assert conflicts == {
        "createEvent", "createEventType", "createKey", "createSubscription", "importEventTypes", "retryDelivery",
        "changeSubscription", "rotateKey", "rotateSecret", "subscribeHook", "testSubscription", "fetchInbox",
        "streamInbox", "acknowledgeEvent", "acknowledgeEventAlias", "listSecrets", "addSecret", "changeSecret",
        "removeSecret", "createEvents", "recoverSubscription", "createPortalLink", "retryDeliveries", "skipDelivery",
    }  # fmt: skip


def test_every_parameter_has_a_description_and_every_member_a_type(schema: dict[str, Any]) -> None:
    for path, _, operation in operations(schema):
        parameters = [resolve(schema, one) for one in operation.get("parameters", [])]
        assert {one["name"] for one in parameters if one["in"] == "path"} == set(re.findall(r"{(\w+)}", path))
        for one in parameters:
            assert one["schema"], (path, one["name"])
            assert one["description"], (path, one["name"])
    for name, component in schema["components"]["schemas"].items():
        for member, part in component.get("properties", {}).items():
            assert part, (name, member)


def undescribed(schema: dict[str, Any], part: dict[str, Any], where: str) -> Iterator[str]:
    """Yield where a schema has members without a description."""
    part = resolve(schema, part)
    for name, member in part.get("properties", {}).items():
        if not (member.get("description") or resolve(schema, member).get("description")):
            yield f"{where} {name}"
        yield from undescribed(schema, member, f"{where} {name}")
    for inner in (*part.get("oneOf", []), *part.get("anyOf", []), *([part["items"]] if "items" in part else [])):
        yield from undescribed(schema, inner, where)


def test_every_member_that_a_request_may_have_is_described(schema: dict[str, Any]) -> None:
    for path, method, operation in operations(schema):
        for media_type, media in resolve(schema, operation.get("requestBody", {})).get("content", {}).items():
            assert not list(undescribed(schema, media["schema"], f"{method} {path} {media_type}"))


def test_every_member_of_every_component_is_described(schema: dict[str, Any]) -> None:
    found = {text for name, part in schema["components"]["schemas"].items() for text in undescribed(schema, part, name)}
    assert not sorted(found)


def examples(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield where each example stands, the schema that it is of, and the example."""

    def in_content(where: str, holder: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], Any]]:
        for media_type, media in holder.get("content", {}).items():
            for name, example in media.get("examples", {}).items():
                yield f"{where} {media_type} {name}", media["schema"], example["value"]
            if "example" in media:
                yield f"{where} {media_type}", media["schema"], media["example"]

    webhooks = [(f"webhook {name}", "post", item["post"]) for name, item in schema["webhooks"].items()]
    for path, method, operation in [*operations(schema), *webhooks]:
        yield from in_content(f"{method} {path} request", operation.get("requestBody", {}))
        for status, answer in operation["responses"].items():
            yield from in_content(f"{method} {path} {status}", resolve(schema, answer))
    for name, header in schema["components"]["headers"].items():
        yield f"header {name}", header["schema"], header["example"]


def test_every_example_is_valid_by_its_own_schema(schema: dict[str, Any]) -> None:
    found = list(examples(schema))
    assert len(found) > 40
    for where, part, example in found:
        errors = [error.message for error in validator(schema, part).iter_errors(example)]
        assert errors == [], where


def test_requests_with_a_body_have_an_example(schema: dict[str, Any]) -> None:
    shown = {where.split(" request")[0] for where, _, _ in examples(schema) if " request" in where}
    expected = {f"{method} {path}" for path, method, operation in operations(schema) if "requestBody" in operation}
    assert expected <= shown


def test_the_request_that_a_receiver_gets_is_described(schema: dict[str, Any]) -> None:
    operation = schema["webhooks"]["event"]["post"]
    headers = {parameter["name"] for parameter in operation["parameters"]}
    assert {"webhook-id", "webhook-timestamp", "webhook-signature", "user-agent"} == headers
    body = resolve(schema, operation["requestBody"]["content"]["application/json"]["schema"])
    assert set(body["required"]) == {"id", "type", "timestamp", "data"}
    assert {"2XX", "3XX", "410", "429", "503", "default"} == set(operation["responses"])


# The formats whose body is the data alone, which may be anything if the event came as a CloudEvent.
BARE = {"cloudevents-binary", "raw"}


def test_every_format_has_its_webhook(schema: dict[str, Any]) -> None:
    """What is rendered fits what is described, and so do the examples."""
    event = SingleOutgoing(
        uuid.uuid4(), "order.created", datetime.datetime.now(datetime.UTC), '{"order": 1}', Endpoint("", "", (), ()),
        uuid.uuid4(),
    )  # fmt: skip
    names = ["event", "eventAsCloudEvent", "eventAsBinaryCloudEvent", "eventAsLegacy", "eventAsData",
             "eventAsTransformed"]  # fmt: skip
    assert list(schema["webhooks"]) == names
    for form, name in zip(FORMATS, names, strict=True):
        operation = schema["webhooks"][name]["post"]
        (media_type, content), *others = operation["requestBody"]["content"].items()
        assert [name for name, _ in others] == (["*/*"] if form in BARE else [])
        body = render(event, event.organization_id, form, "{n: data.order}")
        assert body.content_type.split(";")[0] == media_type
        for value in (json.loads(body.content), content["example"]):
            assert not list(validator(schema, content["schema"]).iter_errors(value)), form
        described = {one["name"] for one in operation["parameters"] if one["name"].startswith("ce-")}
        assert described == {header for header, _ in body.headers}


def test_an_event_that_came_as_a_cloudevent_fits_its_webhook(schema: dict[str, Any]) -> None:
    kept = {"id": "order-4711", "source": "/shop", "datacontenttype": "image/png", "priority": 1}
    [(_, content)] = schema["webhooks"]["eventAsCloudEvent"]["post"]["requestBody"]["content"].items()
    for kind, data in (("", "{}"), (cloudevents.BASE64, '"AA=="'), (cloudevents.NO_DATA, "null")):
        event = SingleOutgoing(
            uuid.uuid4(), "order.created", datetime.datetime.now(datetime.UTC), data, Endpoint("", "", (), ()),
            uuid.uuid4(), None, json.dumps({**kept, cloudevents.DATA: kind} if kind else kept),
        )  # fmt: skip
        sent = json.loads(render(event, event.organization_id, "cloudevents").content)
        assert not list(validator(schema, content["schema"]).iter_errors(sent)), kind


@pytest.mark.parametrize("name", ["eventAsBinaryCloudEvent", "eventAsData"])
def test_a_cloudevent_s_own_data_may_have_any_media_type_or_be_missing(schema: dict[str, Any], name: str) -> None:
    body = schema["webhooks"][name]["post"]["requestBody"]
    assert body["required"] is False
    assert validator(schema, body["content"]["*/*"]["schema"]).is_valid("<svg/>")


ANSWERS = [
    ("/api/events", "/api/events", "200"),
    ("/api/me", "/api/me", "200"),
    ("/api/keys", "/api/keys", "200"),
    ("/api/audit", "/api/audit", "200"),
    ("/api/subscriptions", "/api/subscriptions", "200"),
    ("/api/deliveries", "/api/deliveries", "200"),
    ("/api/health", "/api/health", "200"),
    ("/api/health/detailed", "/api/health/detailed", "200"),
    ("/api/events?limit=x", "/api/events", "400"),
]


def test_what_is_answered_is_what_is_described(
    schema: dict[str, Any], api: ApiClient, organization: Organization
) -> None:
    beat()
    made = api.post(
        "/api/subscriptions", {"url": "https://example.com/", "event_types": ["*"], "headers": {"X-A": "1"}}
    )
    sent = api.post("/api/events", {"type": "a.b", "data": {"n": 1}, "dedup_id": "d"})
    batch = api.post("/api/events/batch", [{"type": "a", "data": 1}, {"type": ""}])
    key = api.post("/api/keys", {"name": "k"})
    assert fan_out_batch(10) == 2
    delivery = api.get("/api/deliveries").json()["data"][0]["id"]
    one = f"/api/subscriptions/{made.json()['id']}"
    seen = [
        (made, "/api/subscriptions", "post", "201"),
        (sent, "/api/events", "post", "202"),
        (batch, "/api/events/batch", "post", "202"),
        (key, "/api/keys", "post", "201"),
        (api.get(sent["Location"]), "/api/events/{event_id}", "get", "200"),
        (api.get(f"/api/deliveries/{delivery}"), "/api/deliveries/{delivery_id}", "get", "200"),
        (api.post(f"/api/deliveries/{delivery}/retry"), "/api/deliveries/{delivery_id}/retry", "post", "202"),
        (api.get(one), "/api/subscriptions/{subscription_id}", "get", "200"),
        (api.post(f"{one}/disable"), "/api/subscriptions/{subscription_id}/disable", "post", "200"),
        (api.post(f"{one}/rotate-secret"), "/api/subscriptions/{subscription_id}/rotate-secret", "post", "200"),
        (api.get(f"{one}/secrets"), "/api/subscriptions/{subscription_id}/secrets", "get", "200"),
        (api.post(f"{one}/secrets", {"secret_type": "ed25519"}), "/api/subscriptions/{subscription_id}/secrets",
         "post", "201"),
        (api.post(f"{one}/test"), "/api/subscriptions/{subscription_id}/test", "post", "200"),
        (api.post(f"{one}/recover", {"since": "2026-01-01T00:00:00Z"}), "/api/subscriptions/{subscription_id}/recover",
         "post", "202"),
        *[(api.get(path), described, "get", status) for path, described, status in ANSWERS],
    ]  # fmt: skip
    for answer, path, method, status in seen:
        described = resolve(schema, schema["paths"][path][method]["responses"][status])
        assert str(answer.status_code) == status, (path, answer.content)
        media_type = answer["Content-Type"]
        part = described["content"][media_type]["schema"]
        errors = [f"{error.json_path}: {error.message}" for error in validator(schema, part).iter_errors(answer.json())]
        assert errors == [], (method, path)
        assert set(answer.json()) <= set(resolve(schema, part).get("properties", {})) | {"errors"}, (method, path)
        for name, header in described["headers"].items():
            rule = resolve(schema, header)
            assert name in answer or not rule.get("required"), (method, path, name)
            if name in answer:
                assert list(validator(schema, rule["schema"]).iter_errors(answer[name])) == [], (method, path, name)


def test_the_schema_is_served_as_json_and_as_yaml(schema: dict[str, Any]) -> None:
    client = ApiClient(None)
    assert client.get("/api/schema")["Content-Type"] == "application/json"
    for answer in (client.get("/api/schema?format=yaml"), client.get("/api/schema", Accept="application/yaml")):
        assert answer["Content-Type"] == "application/yaml"
        assert yaml.safe_load(answer.content) == schema
    assert client.get("/api/schema?format=xml").status_code == 400


def test_the_page_shows_the_schema_with_nothing_from_elsewhere() -> None:
    client = ApiClient(None)
    page = client.get("/api/docs")
    assert (page.status_code, page["Content-Type"].split(";")[0]) == (200, "text/html")
    text = page.content.decode()
    assert "<script>" not in text
    linked = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert linked
    assert all(target.startswith("/") for target in linked)
    assert "unsafe" not in page["Content-Security-Policy"]
    served = {}
    for target in linked:
        answer = client.get(target)
        assert answer.status_code == 200, target
        served[target] = b"".join(answer) if answer.streaming else answer.content
    assert any(b"SwaggerUIBundle" in content and b"/api/schema" in content for content in served.values())


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(schema)))
    assert len(references) > 20
    for reference in references:
        assert resolve(schema, {"$ref": reference}), reference


# --- the Python client ------------------------------------------------------------------------------


def _calls() -> list[Call[Any]]:
    """Return an example of each call."""
    given = {"data": None, "headers": {}, "openapi": {}, "events": [NewEvent("a")], "event_ids": ["i"]}
    found = []
    for name, build in inspect.getmembers(client_operations, inspect.isfunction):
        if build.__module__ == client_operations.__name__ and not name.startswith("_"):
            required = [
                parameter.name
                for parameter in inspect.signature(build).parameters.values()
                if parameter.default is inspect.Parameter.empty
            ]
            call = build(**{parameter: given.get(parameter, "x") for parameter in required})
            found.append(call.first if isinstance(call, ListCall) else call)
    return found


def test_the_python_client_s_calls_are_operations_and_the_keyed_ones_are_those_that_take_a_key(
    schema: dict[str, Any],
) -> None:
    keyed = set()
    for path, method, operation in operations(schema):
        if any("Idempotency-Key" in str(one.values()) for one in operation.get("parameters", [])):
            keyed.add((method.upper(), path))
    paths = {(method.upper(), path) for path, method, _ in operations(schema)}
    for call in _calls():
        [path] = _matching(call.path, [path for method, path in paths if method == call.method])
        if call.keyed:
            assert (call.method, path) in keyed
        if call.body is not msgspec.UNSET:
            assert "requestBody" in schema["paths"][path][call.method.lower()], path
    assert keyed


def test_the_typescript_client_s_types_are_of_this_schema(schema: dict[str, Any]) -> None:
    """`make clients-check` compares them exactly, which needs npm; this finds what was changed and not generated."""
    types = (ROOT / "clients" / "typescript" / "src" / "schema.ts").read_text()
    described = [*(operation for _, _, operation in operations(schema)), *schema["components"]["schemas"].values()]
    lines = {
        line.strip().replace("*/", "*\\/") for one in described for line in one.get("description", "").splitlines()
    }
    names = {f'"{path}": {{' for path in schema["paths"]} | {f" {name}: " for name in schema["components"]["schemas"]}
    missing = sorted(text for text in lines | names if text not in types)
    assert not missing, "run make clients"


def _matching(path: str, templates: list[str]) -> list[str]:
    """Return the template that a path fits best."""
    parts = path.split("/")

    def fits(template: str) -> bool:
        steps = template.split("/")
        return len(steps) == len(parts) and all(
            step == part or step.startswith("{") for step, part in zip(steps, parts, strict=True)
        )

    return sorted(filter(fits, templates), key=lambda template: template.count("{"))[:1]
