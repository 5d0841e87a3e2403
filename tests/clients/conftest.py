"""Web and a worker that the clients' tests share."""

from tests.end_to_end.conftest import installation, without_what_was_left

__all__ = ["installation", "without_what_was_left"]
