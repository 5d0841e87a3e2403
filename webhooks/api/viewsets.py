"""What the endpoints for subscriptions and deliveries have in common."""

from __future__ import annotations

import uuid
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Generic, TypeVar

from django.db.models import Model, QuerySet
from rest_framework.request import Request
from rest_framework.viewsets import ViewSet

from core.problems import no_such
from orgs.scopes import Scope

M = TypeVar("M", bound=Model)


class OrganizationViewSet(ViewSet, Generic[M], ABC):
    """Endpoints for what belongs to the caller's organization; another organization's rows don't exist."""

    # One of the rows, in a message.
    what: ClassVar[str]
    # The scope that each action needs.  An action that isn't named here can't be routed.
    action_scopes: ClassVar[Mapping[str, Scope]]

    @classmethod
    def scopes_for(cls, actions: Mapping[str, str]) -> dict[str, Scope]:
        """Return the scope for each HTTP method of a route.  actions: as given to `as_view`, `{"get": "list"}`."""
        return {method.upper(): cls.action_scopes[action] for method, action in actions.items() if method != "head"}

    @property
    def scopes(self) -> dict[str, Scope]:
        """The scope for each method of the current route, as `HasScope` and the OpenAPI schema want it."""
        return self.scopes_for(self.action_map or {})

    @abstractmethod
    def own_rows(self, request: Request) -> QuerySet[M]:
        """Return the rows of the caller's organization."""

    def shown_rows(self, request: Request) -> QuerySet[M]:
        """Return the rows of the caller's organization, with what a response shows beside their columns."""
        return self.own_rows(request)

    def own_row(self, request: Request, row_id: uuid.UUID) -> M:
        """Return one row of the caller's organization.  Raises Problem 404."""
        return self._only(self.own_rows(request), row_id)

    def shown_row(self, request: Request, row_id: uuid.UUID) -> M:
        """Return one of `shown_rows`, as it is by now.  Raises Problem 404."""
        return self._only(self.shown_rows(request), row_id)

    def _only(self, rows: QuerySet[M], row_id: uuid.UUID) -> M:
        row: Any = rows.filter(pk=row_id).first()
        if row is None:
            raise no_such(self.what)
        found: M = row
        return found
