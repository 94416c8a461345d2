"""Conductor: one load test from the first question to the settled account.

Data flow: `Plan` + `Target` -> prices and balance -> `sender` process -> outcomes, while a thread
samples the replicas -> the account again -> `Run`. An interrupt ends the arrivals, a second one
what is in flight; both end in a whole `Run`.
"""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve_app.errors import ConfigError
from serve_app.loadtest.books import Balance, Books, reconcile
from serve_app.loadtest.figures import Figures, summarise
from serve_app.loadtest.outcome import Outcome, lost
from serve_app.loadtest.plan import Plan
from serve_app.loadtest.target import Sample, Target

SAMPLE_S = 1.0
"""How often replicas are asked for; the server's own answer is up to a second old."""
SETTLE_S = 30.0
"""How long holds of requests that ended may stay open before they count as somebody else's."""
SETTLE_POLL_S = 0.2
STOP_SENDER_S = 10.0


@dataclass(frozen=True)
class Sending:
    """Which processes send: none but one, so many local workers, or workers of other machines."""

    workers: int = 0
    host: str = "127.0.0.1"
    port: int = 0
    remote: bool = False


@dataclass
class Progress:
    """What a display shows while the test runs; written by the threads of `conduct`."""

    plan: Plan
    planned: int
    zero: float | None = None
    """`time.monotonic()` at the test's time 0."""
    outcomes: list[Outcome] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    note: str = "starting"

    @property
    def now_s(self) -> float:
        return 0.0 if self.zero is None else time.monotonic() - self.zero


@dataclass(frozen=True)
class Run:
    """A finished test."""

    plan: Plan
    prices: tuple[int, ...]
    outcomes: tuple[Outcome, ...]
    samples: tuple[Sample, ...]
    figures: Figures
    books: Books
    planned: int
    interrupted: bool


def prepare(plan: Plan, target: Target) -> tuple[tuple[int, ...], Balance]:
    """Prices of the mix and the account before the test, or why it cannot be run."""
    prices = tuple(
        target.price(plan.request(0, number), f"request {number} of the mix")
        for number in range(len(plan.mix.requests))
    )
    before = target.balance()
    if before.held:
        raise ConfigError(
            f"this account holds {before.held:,} CU already: another client uses it, and the "
            "ledger check needs an account of its own"
        )
    needed = sum(prices[entry] for _, entry in plan.schedule())
    if needed > before.available:
        raise ConfigError(
            f"this test needs {needed:,} CU and the account has {before.available:,}: grant more, "
            "or lower --peak-rps or --duration"
        )
    return prices, before


def conduct(
    plan: Plan,
    target: Target,
    key: str,
    sending: Sending,
    log: Path,
    show: Callable[[Progress], None],
) -> Run:
    """Run a plan. `show` is called now and then from this thread; `log` gets the sender's words."""
    prices, before = prepare(plan, target)
    schedule = plan.schedule()
    progress = Progress(plan, len(schedule))
    sampling = target.sees_status()
    over = threading.Event()
    sampler = threading.Thread(target=_sample, args=(target, progress, over), daemon=True)
    if sampling:
        first = target.sample(0.0)  # nothing changes before the first request
        progress.samples += [first] if first is not None else []
        sampler.start()
    with log.open("wb") as words:
        sender = Sender(plan, key, sending, words)
        try:
            interrupted = _follow(sender, progress, show)
        finally:
            sender.close()
            over.set()
    if sampling:
        sampler.join()
    if progress.zero is None:
        raise ConfigError(f"the sending process did not start: see {log}")
    outcomes = _with_lost(progress, schedule, sender.lost_parts, max(1, sending.workers))
    progress.note = "settling"
    show(progress)
    books = reconcile(before, settled(target), outcomes, prices)
    samples = tuple(progress.samples)
    return Run(
        plan=plan,
        prices=prices,
        outcomes=tuple(outcomes),
        samples=samples,
        figures=summarise(outcomes, samples),
        books=books,
        planned=len(schedule),
        interrupted=interrupted,
    )


def settled(target: Target) -> Balance:
    """The account once nothing is held, or after `SETTLE_S`."""
    deadline = time.monotonic() + SETTLE_S
    while (found := target.balance()).held and time.monotonic() < deadline:
        time.sleep(SETTLE_POLL_S)
    return found


class Sender:
    """The sending process, which has gevent inside, from the outside."""

    def __init__(self, plan: Plan, key: str, sending: Sending, log: Any) -> None:
        self.lost_parts: set[int] = set()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "serve_app.loadtest.sender"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "FLUX_SERVE_API_KEY": key},
            start_new_session=True,  # an interrupt of the terminal is for the command alone
        )
        job = {
            "role": "conductor",
            "plan": plan.model_dump(mode="json"),
            "workers": sending.workers,
            "host": sending.host,
            "port": sending.port,
            "remote": sending.remote,
        }
        self.tell(json.dumps(job))

    def tell(self, line: str) -> None:
        """Write a line to the process; one that has ended hears nothing."""
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()

    def listen(self, progress: Progress) -> None:
        """Take messages until the process is done or gone."""
        for line in self._process.stdout or ():
            message = json.loads(line)
            if "rows" in message:
                progress.outcomes.extend(Outcome(*row) for row in message["rows"])
            elif "starts_in_s" in message:
                progress.zero = time.monotonic() + message["starts_in_s"]
                progress.note = "running"
            elif "waiting_for_workers" in message:
                progress.note = "waiting for {waiting_for_workers} workers on port {port}".format(
                    **message
                )
            elif "lost_part" in message:
                self.lost_parts.add(message["lost_part"])

    def close(self) -> None:
        """End the process whatever it does."""
        self.tell("cut")
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        try:
            self._process.wait(STOP_SENDER_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def _follow(sender: Sender, progress: Progress, show: Callable[[Progress], None]) -> bool:
    """Show progress until the sender is done; True when somebody interrupted it."""
    listener = threading.Thread(target=sender.listen, args=(progress,), daemon=True)
    listener.start()
    interrupts = 0
    while listener.is_alive():
        try:
            show(progress)
            listener.join(SAMPLE_S / 4)
        except KeyboardInterrupt:
            interrupts += 1
            sender.tell("stop" if interrupts == 1 else "cut")
            progress.note = "stopping: waiting for replies (interrupt again to give them up)"
    return interrupts > 0


def _sample(target: Target, progress: Progress, over: threading.Event) -> None:
    while True:
        last = over.wait(SAMPLE_S)
        if progress.now_s > 0:
            sample = target.sample(progress.now_s)
            if sample is not None:
                progress.samples.append(sample)
        if last:
            return


def _with_lost(
    progress: Progress, schedule: list[tuple[float, int]], lost_parts: set[int], parts: int
) -> list[Outcome]:
    """Outcomes in order, and one for each request that a dead worker may have sent."""
    outcomes = sorted(progress.outcomes, key=lambda outcome: outcome.index)
    if lost_parts:
        known, end_s = {outcome.index for outcome in outcomes}, progress.now_s
        outcomes += [
            lost(index, entry, at_s, end_s)
            for index, (at_s, entry) in enumerate(schedule)
            if index % parts in lost_parts and index not in known and at_s <= end_s
        ]
        outcomes.sort(key=lambda outcome: outcome.index)
    return outcomes
