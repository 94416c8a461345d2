"""Kills, stalls and outages at random moments under load: no money is lost, and no picture.

`--faults N` and `--faults-seed S` make it longer, or another one.
"""

import time
from base64 import b64decode
from collections.abc import Callable
from io import BytesIO

import httpx
import pytest
from openai import OpenAI
from PIL import Image

from tests.faults.clients import Attempt, Load, show
from tests.faults.injector import Injector
from tests.faults.reckoning import Allowed, Reckoning, reckon
from tests.faults.system import HOLD_TTL_S, KEY, System
from tests.machine import MACHINE, eventually

pytestmark = pytest.mark.serve

BATCH = 50
"""Faults between two looks at a system that is left alone."""
RECOVERY_S = 120
WRONGS_SHOWN = 10


def test_the_openai_client_draws_and_pays(system: System) -> None:
    """The whole way, through HTTP and Serve, to each kind of ledger."""
    charged = system.captured()
    with OpenAI(base_url=f"{system.url}/v1", api_key=KEY, max_retries=0) as client:
        for response_format in ("url", "b64_json"):
            reply = client.images.generate(
                prompt="a red circle", size="512x512", n=2, response_format=response_format
            )
            assert reply.data is not None
            for image in reply.data:
                data = (
                    b64decode(image.b64_json or "")
                    or httpx.get(image.url or "", timeout=MACHINE.allow()).content
                )
                assert Image.open(BytesIO(data)).size == (512, 512)
    assert system.captured() - charged == 4 * 512 * 512
    system.check_books()


@pytest.mark.timeout(0)  # as long as `--faults` asks for; every wait in it has its own limit
def test_whatever_dies_the_books_agree_with_what_clients_got(
    system: System,
    pytestconfig: pytest.Config,
    record_property: Callable[[str, object], None],
) -> None:
    seed = pytestconfig.getoption("--faults-seed")
    total = max(1, pytestconfig.getoption("--faults") // 2)
    others, charged = {hold.id for hold in system.holds()}, system.captured()
    calms = [time.time()]
    with Load(system.url, KEY, seed) as load:
        injector = Injector(system, load, seed)
        while len(injector.faults) < total:
            load.resume()
            injector.strike(min(BATCH, total - len(injector.faults)))
            load.pause()
            check_calm(system, load)
            calms.append(time.time())
    eventually(system.settled, "every hold has ended")
    system.check_books()
    holds = [hold for hold in system.holds() if hold.id not in others]
    found = reckon(
        load.attempts,
        holds,
        injector.faults,
        calms,
        Allowed(MACHINE.allow(HOLD_TTL_S), MACHINE.slowness),
    )
    record_property("report", report(found, injector, load.attempts))
    assert not found.wrongs
    assert found.counts["delivered and charged"]  # it was a load
    assert found.counts["with a key: drawn"]
    assert system.captured() == charged + found.charged


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


def report(found: Reckoning, injector: Injector, attempts: list[Attempt]) -> str:
    kinds = [fault.kind for fault in injector.faults]
    lines = [
        f"{len(attempts)} requests, {len(kinds)} faults:",
        *(f"{kinds.count(kind):6} {kind}" for kind in sorted(set(kinds))),
        *(f"{count:6} {outcome}" for outcome, count in sorted(found.counts.items())),
        *(f"WRONG: {wrong}" for wrong in found.wrongs[:WRONGS_SHOWN]),
    ]
    return "\n".join(lines)
