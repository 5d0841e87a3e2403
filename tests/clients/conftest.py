"""Web and a worker that the clients' tests share."""

from tests.end_to_end.conftest import installation

__all__ = ["installation"]
