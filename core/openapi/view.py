"""`/api/schema`."""

from __future__ import annotations

from functools import lru_cache

from django.http import HttpRequest, HttpResponse
from drf_spectacular.generators import SchemaGenerator
from drf_spectacular.renderers import OpenApiJsonRenderer, OpenApiYamlRenderer

from core.problems import invalid, only_get, problem_response


@lru_cache(maxsize=2)
def rendered_schema(form: str) -> bytes:
    """Return the schema as `json` or `yaml`.  It is generated once per process."""
    document = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    renderer = OpenApiYamlRenderer() if form == "yaml" else OpenApiJsonRenderer()
    text: bytes = renderer.render(document)
    return text


def schema_view(request: HttpRequest) -> HttpResponse:
    """Serve the schema: JSON, or YAML for `?format=yaml` or an `Accept` that asks for it."""
    if (response := only_get(request)) is not None:
        return response
    wanted = request.GET.get("format") or ("yaml" if "yaml" in request.headers.get("Accept", "") else "json")
    if wanted not in {"json", "yaml"}:
        return problem_response(request, invalid([("?format", "must be json or yaml")]))
    return HttpResponse(rendered_schema(wanted), content_type=f"application/{wanted}", headers={"Vary": "Accept"})
