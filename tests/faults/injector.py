"""Breaks things: at random moments, by a seed, several at once.

Data flow: `Injector.strike` -> `HANDS` threads, each draws a kind -> does it to processes of
`System`, its database or its folder -> a `Fault` with its times -> the books are audited. What is
not there to be broken just now (it is still starting) is passed over for another kind.
"""

import ctypes
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.faults.clients import Load
from tests.faults.reckoning import Fault
from tests.faults.system import POLL_S, System, send
from tests.machine import MACHINE, eventually

HANDS = 3
"""Faults under way at once: one may fall into the mending of another."""
GAP_S = (0.1, 0.6)
"""Between two faults of one hand: many hit a system that has not got over the last one."""
PATIENCE_S = 2.0
"""Faults wait so long for a reply to be served: what hits nothing but ruins shows nothing."""
RENAME_EXCHANGE = 2
AT_FDCWD = -100


class Injector:
    """One run of faults against a system; `faults` are those that happened."""

    def __init__(self, system: System, load: Load, seed: int) -> None:
        self.faults: list[Fault] = []
        self._system = system
        self._load = load
        self._randoms = [random.Random(f"{seed}/{hand}") for hand in range(HANDS)]
        self._free = threading.Lock()
        self._taken: set[str] = set()
        self._left = 0
        self._kinds = _kinds(self)

    def strike(self, count: int) -> None:
        """Break so many things, several at once; after each the books are right."""
        self._left = count
        with ThreadPoolExecutor(HANDS, thread_name_prefix="fault") as hands:
            for done in [hands.submit(self._work, rng) for rng in self._randoms]:
                done.result()

    def _work(self, rng: random.Random) -> None:
        while self._take_turn():
            time.sleep(rng.uniform(*GAP_S))  # the pace of the faults, not a wait for anything
            self._wait_for_a_reply()
            while not self._strike(rng):
                time.sleep(0.05)  # nothing of that kind is there yet
            self._system.check_balanced()

    def _wait_for_a_reply(self) -> None:
        deadline, served = time.monotonic() + MACHINE.allow(PATIENCE_S), self._load.served
        while self._load.served == served and time.monotonic() < deadline:
            time.sleep(POLL_S)  # polling with a deadline

    def _take_turn(self) -> bool:
        with self._free:
            self._left -= 1
            return self._left >= 0

    def _strike(self, rng: random.Random) -> bool:
        weights = [kind.weight for kind in self._kinds]
        (kind,) = rng.choices(self._kinds, weights)
        with self._free:
            if kind.of in self._taken:
                return False
            self._taken |= {kind.of} - {""}
        try:
            began = time.time()
            if not kind.act(rng):
                return False
            self.faults.append(Fault(kind.name, began, time.time()))
            return True
        finally:
            with self._free:
                self._taken.discard(kind.of)

    def kill(self, among: Sequence[psutil.Process], rng: random.Random) -> bool:
        return bool(among) and send(rng.choice(among), signal.SIGKILL)

    def kill_proxy(self, rng: random.Random) -> bool:
        if not self.kill(self._system.proxies(), rng):
            return False
        # Until it is back every connection is refused, which no client may see at any other time.
        eventually(self._system.answers, "the proxy is back", 120)
        return True

    def stall(self, among: Sequence[psutil.Process], rng: random.Random) -> bool:
        if not among:
            return False
        with stopped(rng.choice(among)):
            time.sleep(rng.uniform(0.1, 1.5))  # the stall itself
        return True

    def kill_database(self, rng: random.Random) -> bool:
        assert self._system.database is not None
        self._system.database.kill()
        # Mostly a restart; now and then longer than a request tries to charge.
        longest_s = 6.0 if rng.random() < 0.15 else 0.8
        time.sleep(rng.uniform(0.0, longest_s))  # the outage itself
        self._system.database.start()
        return True

    def drop_connections(self, rng: random.Random) -> bool:
        """As a failover or a firewall does: every session ends, wherever it stands."""
        assert self._system.database is not None
        self._system.database.sql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'flux'"
        )
        return True

    def stall_database(self, rng: random.Random) -> bool:
        assert self._system.database is not None
        with self._system.database.frozen():
            time.sleep(rng.uniform(0.2, 3.0))  # the stall itself
        return True

    def lock_database(self, rng: random.Random) -> bool:
        longest_s = 4.0 if rng.random() < 0.25 else 1.0
        with self._system.locked():
            time.sleep(rng.uniform(0.1, longest_s))  # somebody else's long write
        return True

    def store_away(self, rng: random.Random) -> bool:
        with unwritable(self._system.images):
            time.sleep(rng.uniform(0.2, 1.5))  # the outage itself
        return True

    def kill_node(self, rng: random.Random) -> bool:
        if not self._system.has_node:
            return False
        self._system.kill_node()
        self._system.add_node()
        return True


@dataclass(frozen=True)
class Kind:
    """A kind of fault, how often it is drawn, and what can only be broken by one hand at once."""

    name: str
    weight: float
    act: Callable[[random.Random], bool]
    """False: there was nothing to break."""
    of: str = ""


def _kinds(by: Injector) -> list[Kind]:
    """Kills of replicas are the dearest: each costs seconds of both cores to mend."""
    system = by._system
    found = [
        Kind("kill gateway", 12, lambda rng: by.kill(system.gateways(), rng)),
        Kind("kill model", 8, lambda rng: by.kill(system.models(), rng)),
        Kind(
            "kill gateway and model",
            2,
            lambda rng: by.kill(system.gateways(), rng) and by.kill(system.models(), rng),
        ),
        Kind("stall gateway", 10, lambda rng: by.stall(system.gateways(), rng)),
        Kind("stall model", 6, lambda rng: by.stall(system.models(), rng)),
        Kind("stall proxy", 4, lambda rng: by.stall(system.proxies(), rng)),
        Kind("kill proxy", 1.5, by.kill_proxy, "proxy"),
        Kind("kill controller", 1.5, lambda rng: by.kill(system.controllers(), rng)),
        Kind("store away", 10, by.store_away, "store"),
        Kind("kill node", 1.5, by.kill_node, "node"),
        Kind("database locked", 10 if system.database else 20, by.lock_database, "database"),
    ]
    if system.database is not None:
        found += [
            Kind("kill database", 6, by.kill_database, "database"),
            Kind("drop database connections", 12, by.drop_connections, "database"),
            Kind("stall database", 5, by.stall_database, "database"),
        ]
    return found


@contextmanager
def stopped(process: psutil.Process) -> Iterator[None]:
    """A process that does not run, as on a machine that swaps."""
    send(process, signal.SIGSTOP)
    try:
        yield
    finally:
        send(process, signal.SIGCONT)


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    """A file where the folder was: nothing can be stored or read, not even by root."""
    other = folder.with_name("not-a-folder")
    other.touch()
    _exchange(folder, other)
    try:
        yield
    finally:
        _exchange(folder, other)


def _exchange(one: Path, other: Path) -> None:
    """Swap two names at one moment, so that nobody finds neither (Linux)."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = (os.fsencode(one), os.fsencode(other))
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), f"cannot exchange {one} and {other}")
