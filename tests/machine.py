"""How slow this machine is today, and deadlines that go by it.

Data flow: `measure` once a run (a process that imports what tests import) -> the environment, so
that workers know it -> `MACHINE.allow(base_s)`. The shared cluster starts a trivial Serve
application and raises the figure, where that took longer (`MACHINE.started_serve`). A deadline only
ends a test that fails, so each is generous: nothing may pass or fail by being quick.
"""

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from tests.guard import SLOWNESS

IMPORTS_REFERENCE_S = 0.5
"""What `IMPORTS` take on two idle cores of an AMD EPYC; the reference of all base deadlines."""
SERVE_REFERENCE_S = 2.0
"""What a trivial Serve application takes there, from `deploy` to its first reply."""
IMPORTS = "import asyncio, http.client, httpx, pydantic, sqlalchemy.ext.asyncio, typer"
POLL_S, POLL_MAX_S, POLL_GROWTH = 0.02, 0.3, 1.15
"""From one look to the next: soon at first, then ever later, as a look can be dear."""
DEADLINE_S = 60.0
"""For what takes a second or two on the reference machine."""


class Machine:
    """A factor for deadlines, at least 1, and how it was measured."""

    def __init__(self) -> None:
        self.slowness = max(1.0, float(os.environ.get(SLOWNESS, "1")))
        self.measured = (
            f"imports took {self.slowness:.1f} times as long as on the reference machine"
        )

    def measure(self) -> None:
        """Time the imports in a process; called once a run, before there are workers."""
        began = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)  # the first reads the disk
        between = time.monotonic()
        subprocess.run([sys.executable, "-c", IMPORTS], check=True)
        took_s = min(between - began, time.monotonic() - between)
        os.environ[SLOWNESS] = str(took_s / IMPORTS_REFERENCE_S)
        self.__init__()  # type: ignore[misc]

    def started_serve(self, took_s: float) -> None:
        """A trivial Serve application took so long: all deadlines from now on go by it."""
        if took_s / SERVE_REFERENCE_S > self.slowness:
            self.slowness = took_s / SERVE_REFERENCE_S
            self.measured = (
                f"a trivial Serve application started in {took_s:.1f} s, "
                f"{SERVE_REFERENCE_S:.1f} s on the reference machine"
            )

    def allow(self, base_s: float = DEADLINE_S) -> float:
        """Seconds to wait here for what may take `base_s` on the reference machine."""
        return base_s * self.slowness

    def too_late(self, what: str, base_s: float, waited_s: float) -> AssertionError:
        return AssertionError(
            f"timed out after {waited_s:.0f} s, waiting for: {what} "
            f"({base_s:.0f} s times {self.slowness:.1f}: {self.measured})"
        )


MACHINE = Machine()


def eventually(check: Callable[[], Any], what: str, base_s: float = DEADLINE_S) -> Any:
    """Poll until `check` returns something true, and return that."""
    poll_s = POLL_S
    began = time.monotonic()
    deadline = began + MACHINE.allow(base_s)
    while time.monotonic() < deadline:
        if found := check():
            return found
        time.sleep(poll_s)
        poll_s = min(POLL_MAX_S, poll_s * POLL_GROWTH)
    if found := check():  # the machine may have slept through the deadline
        return found
    raise MACHINE.too_late(what, base_s, time.monotonic() - began)


async def until(
    check: Callable[[], Any], what: str, base_s: float = DEADLINE_S, poll_s: float = 0.001
) -> Any:
    """The same on an event loop, which goes on meanwhile."""
    began = time.monotonic()
    deadline = began + MACHINE.allow(base_s)
    while time.monotonic() < deadline:
        if found := check():
            return found
        await asyncio.sleep(poll_s)
    if found := check():
        return found
    raise MACHINE.too_late(what, base_s, time.monotonic() - began)
