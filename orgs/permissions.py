"""Scopes: each API view declares which one each method needs."""

from __future__ import annotations

from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from core.problems import Problem
from orgs.authentication import caller_of
from orgs.keys import Caller
from orgs.scopes import Scope


def require_scope(caller: Caller, scope: Scope) -> None:
    """Raise Problem 403 for a caller whose key lacks `scope`."""
    if scope.value not in caller.scopes:
        raise Problem("missing_scope", f"This key lacks the scope {scope.value}.", extra={"scope": scope.value})


class HasScope(BasePermission):
    """Let a caller pass whose key has the scope that the view's `scopes` names for the method.

    A method without an entry is refused: forgetting one fails closed.  HEAD needs what GET does;
    OPTIONS, which only names the methods, needs a key and no scope.
    """

    def has_permission(self, request: Request, view: Any) -> bool:
        scopes: dict[str, Scope | None] = view.scopes
        method = "GET" if request.method == "HEAD" else request.method or ""
        if method == "OPTIONS":
            return True
        if method not in scopes:
            view.http_method_not_allowed(request)
        needed = scopes[method]
        if needed is not None:
            require_scope(caller_of(request), needed)
        return True
