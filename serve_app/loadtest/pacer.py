"""Pacer: one process's share of a plan, each request a greenlet that starts at its time.

Data flow: plan and share -> `ImageClient` in a greenlet for each arrival -> outcomes in messages to
Locust's master (or to this process, when it is alone). Imported by `sender` only, after Locust has
patched the standard library.
"""

import time
from dataclasses import astuple
from typing import Any

import gevent
from gevent.event import Event
from gevent.pool import Group
from locust.env import Environment

from serve_app.loadtest.client import ImageClient, Reply
from serve_app.loadtest.outcome import ABANDONED, Outcome
from serve_app.loadtest.plan import Plan

START_DELAY_S = 1.0
"""Between handing out the plan and its time 0, so that every process has it."""
FLUSH_S = 0.25
IN_FLIGHT_MAX = 10_000
"""Requests waiting in one process; more would run out of file descriptors first."""
MESSAGE_ROWS_MAX = 1000


class Pacer:
    """Sends one process's share of a plan."""

    def __init__(self, environment: Environment, key: str) -> None:
        self._environment = environment
        self._key = key
        self._plan: Plan | None = None
        self._share = (0, 1)
        self._zero_s = 0.0
        self._begun = False
        self._stop, self._planned = Event(), Event()
        self._flights = Group()
        self._rows: list[list[Any]] = []

    def take_plan(self, plan: Plan, part: int, parts: int) -> None:
        self._plan, self._share = plan, (part, parts)
        self._zero_s = time.perf_counter() + START_DELAY_S
        self._planned.set()

    def stop(self) -> None:
        """Send nothing more; what is in flight may end."""
        self._stop.set()

    def cut(self) -> None:
        """Give up what is in flight, too."""
        self._stop.set()
        self._flights.kill(block=False)

    def run(self) -> None:
        """Pace the share and report it; a second caller (a rebalanced user) does nothing."""
        self._planned.wait()
        if self._begun or self._plan is None:
            return
        self._begun = True
        flusher = gevent.spawn(self._flush_regularly)
        self._pace(self._plan)
        self._flights.join()
        flusher.kill()
        self._flush()
        self._send("part_done", {"part": self._share[0]})

    def _pace(self, plan: Plan) -> None:
        part, parts = self._share
        client = ImageClient(plan.target, self._key, plan.timeout_s)
        for index, (at_s, entry) in enumerate(plan.schedule()):
            if index % parts != part:
                continue
            wait_s = self._zero_s + at_s - time.perf_counter()
            if wait_s > 0 and self._stop.wait(wait_s):
                return
            if self._stop.is_set():
                return
            if len(self._flights) >= IN_FLIGHT_MAX:
                self._note(index, entry, at_s, self._now(), Reply(0, "client_saturated"))
                continue
            self._flights.spawn(self._fly, client, plan, index, entry, at_s)

    def _fly(self, client: ImageClient, plan: Plan, index: int, entry: int, at_s: float) -> None:
        sent_s = self._now()
        try:
            reply = client.draw(plan.request(index, entry), plan.request_id(index))
        except gevent.GreenletExit:
            reply = Reply(0, ABANDONED)
        self._note(index, entry, at_s, sent_s, reply)

    def _now(self) -> float:
        return time.perf_counter() - self._zero_s

    def _note(self, index: int, entry: int, at_s: float, sent_s: float, reply: Reply) -> None:
        outcome = Outcome(index, entry, at_s, sent_s, self._now(), *astuple(reply))
        self._rows.append(outcome.row())
        self._environment.events.request.fire(  # type: ignore[no-untyped-call]  # its statistics
            request_type="POST",
            name=f"entry {entry}",
            response_time=outcome.latency_s * 1000,
            response_length=0,
            exception=None if outcome.delivered else RuntimeError(reply.code),
            context={},
        )

    def _flush_regularly(self) -> None:
        while True:
            gevent.sleep(FLUSH_S)
            self._flush()

    def _flush(self) -> None:
        while self._rows:
            rows, self._rows = self._rows[:MESSAGE_ROWS_MAX], self._rows[MESSAGE_ROWS_MAX:]
            self._send("outcomes", {"rows": rows})

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        runner = self._environment.runner
        if runner is not None:
            runner.send_message(kind, data)
