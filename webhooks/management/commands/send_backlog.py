"""`manage.py send_backlog`: the backlog sender, a separate process beside a worker (dispatch/backlog_sender.py)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from core.metrics.process import publish
from core.process import lower_priority, prepare
from webhooks.dispatch.backlog_fan_out import BacklogFanOut
from webhooks.dispatch.backlog_sender import DUE, HEARTBEAT, HEARTBEAT_SECONDS, OTHERS, READY, RUNS, WAKE
from webhooks.dispatch.claim import QueueFilter
from webhooks.dispatch.giving_way import Pace
from webhooks.dispatch.sender import Sender
from webhooks.upkeep.backlog_runs import BacklogRuns


class Command(BaseCommand):
    help = (
        "Sends the webhooks of subscriptions that have a backlog, and works through retries, replays, and recoveries "
        "of many deliveries, until its standard input is closed. Workers start this process by themselves when it is "
        "needed."
    )
    requires_system_checks = ()  # see core/management/commands/rqworker.py

    def handle(self, *args: Any, **options: Any) -> None:
        """Start the sender, the fan-out, and the thread for runs; then tell the worker that this process is alive.

        A byte on the standard input wakes the first two, or the third, or says that others are served, to whom this
        process gives way; the end of the input, and SIGTERM, end the process.
        """
        prepare(sockets=settings.MAX_CONCURRENT_DELIVERIES)
        lower_priority()
        pace = Pace()
        sender = Sender(
            settings.MAX_CONCURRENT_DELIVERIES, settings.SWEEP_INTERVAL, QueueFilter.WITH_BACKLOG, pace=pace
        )
        told_to_stop = False

        def stop(signum: int, frame: object) -> None:
            nonlocal told_to_stop
            told_to_stop = True
            sender.stop_claiming()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the worker's, which then closes our stdin
        sender.start()
        sender.wake()

        def deliveries_due() -> None:
            sender.wake()
            with contextlib.suppress(OSError):  # the worker is gone, which the loop below notices
                os.write(sys.stdout.fileno(), DUE)

        fan_out = BacklogFanOut(deliveries_due, sender.has_room, pace)
        fan_out.start()
        fan_out.wake()
        runs = BacklogRuns()
        runs.start()
        message = READY
        while not told_to_stop:
            try:
                os.write(sys.stdout.fileno(), message)
            except OSError:
                break  # the worker is gone
            message = HEARTBEAT
            publish("backlog_sender")
            if not sender.is_alive:
                sys.exit("The sender's thread has ended.")
            if select.select([sys.stdin], [], [], HEARTBEAT_SECONDS)[0]:
                said = os.read(sys.stdin.fileno(), 4096)
                if not said:
                    break
                if OTHERS in said:
                    pace.others_are_served()
                if WAKE in said:
                    sender.wake()
                    fan_out.wake()
                if RUNS in said:
                    runs.wake()
        fan_out.stop()
        runs.stop()
        sender.stop(settings.WORKER_SHUTDOWN_GRACE)
