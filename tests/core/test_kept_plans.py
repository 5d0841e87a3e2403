"""What a transaction whose plans are kept sets, and for how long."""

from __future__ import annotations

import pytest

from core.db import KEEP_PLANS, KEEP_PLANS_WITHOUT_WAITING, in_transaction, server_cursor

pytestmark = pytest.mark.django_db(transaction=True)


def shown(setting: str) -> str:
    with server_cursor() as cursor:
        return str(cursor.execute(f"SHOW {setting}").fetchall()[0][0])


@pytest.mark.parametrize("statement", [KEEP_PLANS, KEEP_PLANS_WITHOUT_WAITING], ids=["waiting", "without_waiting"])
def test_a_plan_that_may_read_no_table_is_never_compiled_and_nothing_is_left_set(statement: str) -> None:
    """Before PostgreSQL 18, reading a table against `enable_seqscan` costs so much that it would be."""
    usual = shown("enable_seqscan"), shown("jit")

    def begin() -> tuple[str, str]:
        with server_cursor() as cursor:
            cursor.execute(statement)
        return shown("enable_seqscan"), shown("jit")

    assert in_transaction(begin) == ("off", "off")
    assert (shown("enable_seqscan"), shown("jit")) == usual
    assert usual[0] == "on"
