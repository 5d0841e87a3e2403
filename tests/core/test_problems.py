"""Errors: each exception becomes the problem that stands for it, with pointers into the request."""

from __future__ import annotations

import ast
import json
from typing import Any

import psycopg
import pytest
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.db import DatabaseError, InterfaceError, OperationalError, connection, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.html import escape
from rest_framework import exceptions

from core import error_pages, problems
from core.db import server_cursor
from core.exceptions import as_problem
from core.problems import MEDIA_TYPE, Problem, ProblemType, problem_types, register
from devstack.processes import ROOT


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (Problem("forbidden", "No."), 403, "forbidden"),
        (exceptions.ValidationError({"a": ["x"]}), 400, "invalid"),
        (exceptions.MethodNotAllowed("PUT"), 405, "method_not_allowed"),
        (exceptions.UnsupportedMediaType("text/plain"), 415, "unsupported_media_type"),
        (exceptions.ParseError("x"), 400, "bad_request"),
        (exceptions.Throttled(), 400, "bad_request"),
        (exceptions.PermissionDenied(), 403, "forbidden"),
        (Http404(), 404, "not_found"),
        (RequestDataTooBig(), 413, "too_large"),
        (SuspiciousOperation(), 400, "bad_request"),
        (OperationalError("gone"), 503, "database_unavailable"),
        (InterfaceError("closed"), 503, "database_unavailable"),
        (psycopg.OperationalError("gone"), 503, "database_unavailable"),
        (psycopg.errors.TooManyConnections("gone"), 503, "database_unavailable"),
        (psycopg.errors.DiskFull("full"), 503, "database_unavailable"),
        (psycopg.errors.DeadlockDetected("busy"), 503, "database_busy"),
    ],
)
def test_an_exception_becomes_a_problem(error: Exception, status: int, code: str) -> None:
    problem = as_problem(error)
    assert problem is not None
    assert (problem.status_code, problem.code) == (status, code)
    assert problem.sentence


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), psycopg.errors.UndefinedTable("secret")])
def test_a_fault_of_ours_stands_for_none(error: Exception) -> None:
    assert as_problem(error) is None


def test_each_leaf_of_a_validation_error_is_pointed_at() -> None:
    error = exceptions.ValidationError(
        {"a": ["one", "two"], "b/c~d": {"e": ["three"]}, "list": [{}, {"f": ["four"]}], "non_field_errors": ["five"]}
    )
    problem = as_problem(error)
    assert problem is not None
    assert [(one["pointer"], one["detail"]) for one in problem.errors] == [
        ("/a", "one"), ("/a", "two"), ("/b~1c~0d/e", "three"), ("/list/1/f", "four"), ("", "five"),
    ]  # fmt: skip


def request_for(path: str) -> HttpRequest:
    request = HttpRequest()
    request.path = request.path_info = path
    request.method = "GET"
    return request


@pytest.mark.parametrize(
    ("respond", "status"),
    [
        (lambda request: error_pages.handler400(request, SuspiciousOperation("secret")), 400),
        (lambda request: error_pages.handler403(request, PermissionDenied("secret")), 403),
        (lambda request: error_pages.handler404(request, Http404("secret")), 404),
        (lambda request: error_pages.handler500(request), 500),
    ],
)
def test_django_s_own_pages_are_problems_under_api_and_html_elsewhere(respond: Any, status: int) -> None:
    for path in ("/api", "/api/x"):
        answer: HttpResponse = respond(request_for(path))
        assert (answer.status_code, answer["Content-Type"]) == (status, MEDIA_TYPE)
        assert json.loads(answer.content)["status"] == status
        assert b"secret" not in answer.content
        assert answer["Content-Length"] == str(len(answer.content))
    page: HttpResponse = respond(request_for("/admin/x"))
    assert page.status_code == status
    assert page["Content-Type"].startswith("text/html")


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("statement", "title", "code"),
    [
        ("SET LOCAL statement_timeout = 1; SELECT pg_sleep(10)", "The database was busy", "database_busy"),
        ("DO $$ BEGIN RAISE deadlock_detected; END $$", "The database was busy", "database_busy"),
        ("DO $$ BEGIN RAISE lock_not_available; END $$", "The database was busy", "database_busy"),
        ("DO $$ BEGIN RAISE serialization_failure; END $$", "The database was busy", "database_busy"),
        ("DO $$ BEGIN RAISE disk_full; END $$", "The database can't store or read this", "database_unavailable"),
        ("DO $$ BEGIN RAISE too_many_connections; END $$", "The database is not responding", "database_unavailable"),
        ("DO $$ BEGIN RAISE admin_shutdown; END $$", "The database is not responding", "database_unavailable"),
    ],
)
def test_a_database_that_is_busy_or_full_is_told_from_one_that_is_away(statement: str, title: str, code: str) -> None:
    for run in (_by_django, _by_psycopg):
        try:
            with transaction.atomic():
                run(statement)
        except (DatabaseError, psycopg.Error) as error:
            page, problem = error_pages.handler500(request_for("/admin/x")), as_problem(error)
        assert page.status_code == 503
        assert f"<h1>{escape(title)}</h1>" in page.content.decode()
        assert problem is not None
        assert (problem.status_code, problem.code) == (503, code)
        assert int(problem.headers["Retry-After"]) > 0


def _by_django(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)


def _by_psycopg(statement: str) -> None:
    for one in statement.split(";", 1) if statement.startswith("SET") else [statement]:
        server_cursor().execute(one)


def test_the_problem_has_its_members_and_those_on_top() -> None:
    answer = problems.problem_response(
        request_for("/api/x"),
        Problem("dedup_conflict", "It is taken.", errors=[("/a", "x")], headers={"Location": "/y"}, extra={"by": "z"}),
    )
    assert json.loads(answer.content) == {
        "type": "/api/problems/dedup_conflict", "title": "Dedup conflict", "status": 409, "detail": "It is taken.",
        "code": "dedup_conflict",
        "request_id": None, "errors": [{"pointer": "/a", "detail": "x"}], "by": "z",
    }  # fmt: skip
    assert answer["Location"] == "/y"


def test_a_code_that_no_app_has_registered_is_an_error() -> None:
    with pytest.raises(LookupError, match="teapot"):
        Problem("teapot", "I am one.")


def test_a_code_is_registered_once() -> None:
    with pytest.raises(ValueError, match="not_found is registered twice"):
        register(ProblemType("not_found", 410, "Gone.", "It is gone."))
    register(*problem_types())  # an app that is imported again changes nothing


def test_every_registered_code_is_used_and_every_code_that_is_used_is_registered() -> None:
    used: set[str] = set()
    for app in ("core", "orgs", "events", "webhooks", "portal", "console", "triggers_project"):
        for path in (ROOT / app).rglob("*.py"):
            if path.name != "problems.py" or app == "core":
                strings = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant))
                used |= {node.value for node in strings if isinstance(node.value, str)}
            for node in ast.walk(ast.parse(path.read_text())):
                named = isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == "Problem"
                if named and node.args and isinstance(node.args[0], ast.Constant):  # type: ignore[attr-defined]
                    assert node.args[0].value in {one.code for one in problem_types()}, path  # type: ignore[attr-defined]
    made = {"key_revoked", "key_expired"}  # from what ended the key
    assert {one.code for one in problem_types()} - made <= used
