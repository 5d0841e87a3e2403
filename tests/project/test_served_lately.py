"""Web processes know who is served by any of them."""

from __future__ import annotations

import os
import time
import uuid

from devstack.waiting import wait_until
from triggers_project import served_lately
from triggers_project.served_lately import LATELY_SECONDS, ServedLately

ALICE, BOB, CAROL = (uuid.uuid4() for _ in range(3))


def test_only_somebody_else_counts_and_only_for_a_while() -> None:
    served = ServedLately()
    assert not served.another_than(ALICE)
    served.note(ALICE)
    served.note(ALICE)
    assert not served.another_than(ALICE)
    assert served.another_than(BOB)
    served.note(BOB)
    served.note(ALICE)
    assert served.another_than(ALICE)
    assert served.another_than(BOB)
    served.note(CAROL)  # takes the place of the one who was served longest ago, which is Bob
    assert served.another_than(CAROL)
    time.sleep(LATELY_SECONDS)
    assert not served.another_than(CAROL)


def test_what_one_process_serves_another_one_knows() -> None:
    served = ServedLately()  # as in gunicorn's master
    served.choose_place(7)
    child = os.fork()
    if not child:
        served.choose_place(8)
        while True:
            served.note(BOB)
            time.sleep(0.01)
    try:
        wait_until(lambda: served.another_than(ALICE), "the other process isn't heard")
        assert not served.another_than(BOB)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_workers_inherit_the_memory_that_the_application_reads() -> None:
    from triggers_project import web_worker

    assert web_worker.served_lately is served_lately.served_lately
