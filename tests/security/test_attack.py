"""The schema and raw bytes, thrown at the API by generators: no 5xx and no answer that isn't documented."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from django.test import Client
from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from orgs.keys import create_api_key
from orgs.models import Organization
from tests.api.helpers import beat
from triggers_project.wsgi import application


@schemathesis.serializer("application/x-ndjson")
def lines(context: Any, value: Any) -> bytes:
    """Return what was generated for an NDJSON body as bytes."""
    return value.encode("utf-8", "surrogatepass") if isinstance(value, str) else json.dumps(value).encode()


SCHEMA = schemathesis.openapi.from_wsgi("/api/schema", application)
# By name, because the tests of a generator of its own would all be called the same.
OPERATIONS = {operation.label: operation for operation in (result.ok() for result in SCHEMA.get_all_operations())}
CHECKS = [
    schemathesis.checks.not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture
def key(organization: Organization) -> str:
    """Return a key that may do everything, of an organization without a rate limit."""
    Organization.objects.filter(pk=organization.pk).update(events_per_minute=0)
    return create_api_key(organization)[1]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_answers_as_documented(name: str, key: str) -> None:
    beat()

    @seed(20260101)
    @settings(max_examples=8, phases=[Phase.explicit, Phase.generate], derandomize=False, database=None)
    @given(case=OPERATIONS[name].as_strategy())
    def attack(case: Any) -> None:
        case.call_and_validate(headers={"X-API-Key": key}, checks=CHECKS)

    attack()


def test_no_operation_of_the_schema_is_left_out() -> None:
    paths = SCHEMA.raw_schema["paths"]
    methods = {"get", "post", "put", "patch", "delete"}
    assert len(OPERATIONS) == sum(len(methods & set(entry)) for entry in paths.values()) > 20


BODIES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
        max_leaves=12,
    ).map(lambda value: json.dumps(value).encode()),
    st.sampled_from([b"[" * 5000, b'{"a":' * 5000, b"\x00" * 100, b"1e999999", b'"' + b"\\ud800" * 10 + b'"', b"-"]),
)
PATHS = ["/api/events", "/api/events/batch", "/api/subscriptions", "/api/keys"]
HEADER_TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=200)


@pytest.mark.parametrize("path", PATHS)
def test_raw_bytes_are_never_a_server_error(key: str, path: str) -> None:
    client = Client(raise_request_exception=False)

    @seed(1)
    @settings(max_examples=80, database=None)
    @given(body=BODIES, kind=st.sampled_from(["application/json", "application/x-ndjson", "text/plain", ""]))
    def attack(body: bytes, kind: str) -> None:
        response = client.generic("POST", path, body, content_type=kind, headers={"X-API-Key": key})
        assert response.status_code < 500, (body, response.content)
        if response.status_code >= 400:
            assert response["Content-Type"] == "application/problem+json"

    attack()


def test_raw_headers_and_queries_are_never_a_server_error(key: str) -> None:
    client = Client(raise_request_exception=False)

    @seed(2)
    @settings(max_examples=80, database=None)
    @given(
        path=st.sampled_from(["/api/events", "/api/deliveries", "/api/audit", "/api/keys", "/api/schema"]),
        name=st.sampled_from(
            [
                "X-API-Key",
                "Authorization",
                "X-Request-Id",
                "Content-Encoding",
                "Accept",
                "Content-Type",
                "X-Forwarded-For",
            ]
        ),
        value=HEADER_TEXT,
        query=st.dictionaries(
            st.sampled_from(["limit", "cursor", "since", "until", "type", "status", "format", "event", "x"]),
            st.text(max_size=60),
            max_size=3,
        ),
    )
    def attack(path: str, name: str, value: str, query: dict[str, str]) -> None:
        response = client.get(path, query, headers={"X-API-Key": key, name: value})
        assert response.status_code < 500, response.content

    attack()


def test_raw_paths_are_never_a_server_error(key: str) -> None:
    client = Client(raise_request_exception=False)

    @seed(3)
    @settings(max_examples=80, database=None)
    @given(
        st.sampled_from(["/api/", "/api/events/", "/api/keys/", "/api/deliveries/", "/", "/static/", "/admin/"]),
        st.text(max_size=60),
        st.sampled_from(["GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"]),
    )
    def attack(prefix: str, rest: str, method: str) -> None:
        path = prefix + quote(rest)
        assert client.generic(method, path, headers={"X-API-Key": key}).status_code < 500, path

    attack()
