"""The portal's routes, with the fields of a good form for each method that changes something."""

from __future__ import annotations

from typing import Any

from orgs.scopes import Scope

ENDPOINT = {"url": "https://new.example/hook", "which": "all"}
_ONE = "portal/endpoints/<uuid:endpoint_id>"

# Each is a page of a session.  None: no form.
PORTAL: dict[str, list[tuple[str, dict[str, Any] | None]]] = {
    "portal/": [("GET", None)],
    "portal/close": [("POST", {})],
    "portal/endpoints/new": [("GET", None), ("POST", ENDPOINT)],
    _ONE: [("GET", None)],
    f"{_ONE}/edit": [("GET", None), ("POST", ENDPOINT)],
    f"{_ONE}/test": [("POST", {})],
    f"{_ONE}/enable": [("POST", {})],
    f"{_ONE}/disable": [("GET", None), ("POST", {"reason": "mine"})],
    f"{_ONE}/delete": [("GET", None), ("POST", {})],
    f"{_ONE}/secret": [("GET", None), ("POST", {"overlap": "0"})],
    f"{_ONE}/recover": [("GET", None), ("POST", {"since": "2026-01-01T00:00"})],
    f"{_ONE}/recoveries/<uuid:run_id>": [("GET", None)],
    "portal/event-types": [("GET", None)],
    "portal/deliveries": [("GET", None)],
    "portal/deliveries/<uuid:delivery_id>": [("GET", None)],
    "portal/deliveries/<uuid:delivery_id>/retry": [("POST", {})],
    "portal/deliveries/<uuid:delivery_id>/skip": [("GET", None), ("POST", {})],
    "portal/logs": [("GET", None)],
    "portal/help": [("GET", None)],
}
# They need no session: the page of links, and the style sheet.
PORTAL_OPEN = {"portal/open", "portal/theme.css"}
# They lead a session that can only look nowhere.
ONLY_FOR_CHANGES = {
    "portal/endpoints/new", f"{_ONE}/edit", f"{_ONE}/disable", f"{_ONE}/delete", f"{_ONE}/secret", f"{_ONE}/recover",
    "portal/deliveries/<uuid:delivery_id>/skip",
}  # fmt: skip
# What a session must be allowed for a page; endpoints, the changes of the log, and the help can always be looked at.
NEEDS = {
    "portal/event-types": Scope.EVENTS_READ,
    "portal/deliveries": Scope.DELIVERIES_READ,
    "portal/deliveries/<uuid:delivery_id>": Scope.DELIVERIES_READ,
}
PAGES = [(route, method, fields) for route, methods in PORTAL.items() for method, fields in methods]
CHANGES = [(route, fields) for route, method, fields in PAGES if method == "POST" and route != "portal/close"]
