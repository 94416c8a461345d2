"""Breaks things: at random moments, by a seed, one after another.

Data flow: `Injector.strike` draws a kind -> does it to processes of `System`, its database or its
folder -> a `Fault` with its times. What is not there to be broken just now (it is still starting)
is passed over for another kind.
"""

import ctypes
import os
import random
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.faults.reckoning import Fault
from tests.faults.system import System, eventually, send

GAP_S = (0.1, 0.7)
"""Between faults: many hit a system that has not got over the last one."""
RENAME_EXCHANGE = 2
AT_FDCWD = -100


class Injector:
    """One run of faults against a system; `faults` are those that happened."""

    def __init__(self, system: System, seed: int) -> None:
        self.faults: list[Fault] = []
        self._system = system
        self._random = random.Random(seed)
        self._kinds: dict[str, tuple[int, Callable[[], bool]]] = {
            "kill gateway": (22, lambda: self._kill(system.gateways())),
            "kill model": (18, lambda: self._kill(system.models())),
            "kill gateway and model": (
                4,
                lambda: self._kill(system.gateways()) and self._kill(system.models()),
            ),
            "stall gateway": (8, lambda: self._stall(system.gateways())),
            "stall model": (8, lambda: self._stall(system.models())),
            "stall proxy": (3, lambda: self._stall(system.proxies())),
            "kill proxy": (2, self._kill_proxy),
            "kill controller": (2, lambda: self._kill(system.controllers())),
            "store away": (8, self._store_away),
            "kill node": (2, self._kill_node),
        }
        if system.database is None:
            self._kinds["database locked"] = (20, self._lock_database)
        else:
            self._kinds["kill database"] = (15, self._kill_database)
            self._kinds["stall database"] = (6, self._stall_database)

    def strike(self) -> Fault:
        """Break one thing, after a moment in which nothing is."""
        time.sleep(self._random.uniform(*GAP_S))  # the pace of the faults, not a wait for anything
        weights = [weight for weight, _ in self._kinds.values()]
        while True:
            (kind,) = self._random.choices(list(self._kinds), weights)
            began = time.time()
            if self._kinds[kind][1]():
                fault = Fault(kind, began, time.time())
                self.faults.append(fault)
                return fault
            time.sleep(0.05)  # nothing of that kind is there yet

    def _kill(self, among: Sequence[psutil.Process]) -> bool:
        return bool(among) and send(self._random.choice(among), signal.SIGKILL)

    def _kill_proxy(self) -> bool:
        if not self._kill(self._system.proxies()):
            return False
        # Until it is back every connection is refused, which no client may see at any other time.
        eventually(self._system.answers, "the proxy is back", 120)
        return True

    def _stall(self, among: Sequence[psutil.Process]) -> bool:
        if not among:
            return False
        with stopped(self._random.choice(among)):
            time.sleep(self._random.uniform(0.2, 2.0))  # the stall itself
        return True

    def _kill_database(self) -> bool:
        assert self._system.database is not None
        self._system.database.kill()
        # Mostly a restart; now and then longer than a request tries to charge.
        longest_s = 6.0 if self._random.random() < 0.15 else 0.8
        time.sleep(self._random.uniform(0.0, longest_s))  # the outage itself
        self._system.database.start()
        return True

    def _stall_database(self) -> bool:
        assert self._system.database is not None
        with self._system.database.frozen():
            time.sleep(self._random.uniform(0.2, 3.0))  # the stall itself
        return True

    def _lock_database(self) -> bool:
        path = self._system.ledger_url.removeprefix("sqlite+aiosqlite:///")
        database = sqlite3.connect(path, isolation_level=None, timeout=30)
        try:
            database.execute("BEGIN EXCLUSIVE")
            time.sleep(self._random.uniform(0.2, 5.0))  # somebody else's long write
            database.execute("ROLLBACK")
        finally:
            database.close()
        return True

    def _store_away(self) -> bool:
        with unwritable(self._system.images):
            time.sleep(self._random.uniform(0.2, 1.5))  # the outage itself
        return True

    def _kill_node(self) -> bool:
        if self._system.platform.second is None:
            return False
        self._system.platform.kill_node()
        self._system.platform.add_node()
        return True


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
