"""The pages of docs/reference/ say what the code says."""

from __future__ import annotations

import re

import pytest

from scripts import reference_docs
from tests.project.routes import api_routes


@pytest.mark.parametrize("page", reference_docs.PAGES)
def test_a_page_is_what_the_code_says(page: str) -> None:
    written = reference_docs.PAGES[page]()
    assert (reference_docs.DOCS / page).read_text() == written, "run python -m scripts.reference_docs"


def test_the_page_of_the_api_has_every_operation() -> None:
    page = (reference_docs.DOCS / "reference" / "api.md").read_text()
    shown = set(re.findall(r"^`([A-Z]+) (/\S+)`$", page, re.M))
    served = {(method, path) for path, scopes in api_routes().items() if scopes for method in scopes}
    assert served <= shown
