"""Kills, stalls and outages at random moments under load: no money is lost, and no picture.

`--faults N` and `--faults-seed S` make it longer, or another one.
"""

import sys
import time

import pytest

from tests.faults.clients import Attempt, Load, show
from tests.faults.injector import Injector
from tests.faults.reckoning import Reckoning, reckon
from tests.faults.system import HOLD_TTL_S, KEY, System, eventually

pytestmark = pytest.mark.serve

BATCH = 50
"""Faults between two looks at a system that is left alone."""
RECOVERY_S = 120
WRONGS_SHOWN = 10


@pytest.mark.timeout(0)  # as long as `--faults` asks for; every wait in it has its own limit
def test_whatever_dies_the_books_agree_with_what_clients_got(
    system: System, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    seed = pytestconfig.getoption("--faults-seed")
    total = max(1, pytestconfig.getoption("--faults") // 2)
    injector, calms = Injector(system, seed), [time.time()]
    with Load(system.url, KEY, seed) as load:
        while len(injector.faults) < total:
            load.resume()
            injector.strike(min(BATCH, total - len(injector.faults)))
            load.pause(eventually)
            check_calm(system, load)
            calms.append(time.time())
    eventually(system.settled, "every hold has ended")
    system.check_books()
    found = reckon(load.attempts, system.holds(), injector.faults, calms, HOLD_TTL_S)
    report(found, injector, load.attempts, capsys)
    assert not found.wrongs
    assert found.counts["delivered and charged"]  # it was a load
    assert found.counts["with a key: drawn"]
    assert system.captured() == found.charged


def check_calm(system: System, load: Load) -> None:
    """Left alone, the system recovers, serves everything, and its books and links are right."""
    eventually(system.healthy, "it recovers by itself", RECOVERY_S)
    system.check_books()
    for attempt in load.round():
        assert attempt.served, attempt
    check_pictures(load)


def check_pictures(load: Load) -> None:
    """Every file and every link that a client got is a picture of what it asked for."""
    for attempt in load.attempts:
        files = [file for file in attempt.pictures.values() if file]
        for url, reply in load.fetch(attempt.urls):
            assert reply.status_code == 200, (url, reply.text, attempt)
            files.append(reply.content)
        for file in files:
            assert not show(file, attempt), attempt
        attempt.forget_bytes()


def report(
    found: Reckoning,
    injector: Injector,
    attempts: list[Attempt],
    capsys: pytest.CaptureFixture[str],
) -> None:
    kinds = [fault.kind for fault in injector.faults]
    lines = [
        f"{len(attempts)} requests, {len(kinds)} faults:",
        *(f"{kinds.count(kind):6} {kind}" for kind in sorted(set(kinds))),
        *(f"{count:6} {outcome}" for outcome, count in sorted(found.counts.items())),
        *(f"WRONG: {wrong}" for wrong in found.wrongs[:WRONGS_SHOWN]),
    ]
    with capsys.disabled():
        sys.stdout.write("\n" + "\n".join(lines) + "\n")
