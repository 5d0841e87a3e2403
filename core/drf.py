"""The negotiation, metadata, and parsers of Django REST framework."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rest_framework.metadata import BaseMetadata
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request


class JSONOnlyNegotiation(BaseContentNegotiation):
    """The API speaks JSON whatever `Accept` says: a response that the client can read is better than a 406."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        content_type = (request.content_type or "").split(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[BaseRenderer], format_suffix: str | None = None
    ) -> tuple[BaseRenderer, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type or "application/json"


class NoMetadata(BaseMetadata):
    """`OPTIONS` names the methods in `Allow` and nothing else: the OpenAPI schema describes them."""

    def determine_metadata(self, request: Request, view: Any) -> None:
        return None


class JSONBody(BaseParser):
    """Declares that a view takes `application/json`.

    Views read the body themselves: each has its own size limit, and DRF treats a chunked body, which has no
    Content-Length, as empty.
    """

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        raise NotImplementedError("the view reads the body")


class NDJSONBody(JSONBody):
    """Declares that a view takes `application/x-ndjson`: one JSON object per line."""

    media_type = "application/x-ndjson"
