"""What only looking tells: open holds, the balance of the books, replicas; looked at regularly.

Data flow: ledger and Serve's controller -> `watch` every few seconds -> gauges. Every gateway sees
the same, so a dashboard takes the maximum and not the sum.
"""

import asyncio

from serve_app.config import AppConfig
from serve_app.errors import AppError, Unavailable
from serve_app.ingress.admin import Fleet
from serve_app.metering.sql import SqlLedger
from serve_app.metrics import (
    HOLDS_OPEN,
    LEDGER_IMBALANCE,
    LEDGER_OUTAGES,
    LEDGER_UP,
    REPLICAS,
    UNITS_HELD,
    Recorder,
)


async def watch_forever(
    ledger: SqlLedger, fleet: Fleet, record: Recorder, config: AppConfig
) -> None:
    """Look, and look again every `metrics.interval_s`; what does not answer is tried again."""
    models = [model.id for model in config.models]
    while True:
        await watch_ledger(ledger, record, models)
        await watch_fleet(fleet, record)
        await asyncio.sleep(config.metrics.interval_s)


async def watch_ledger(ledger: SqlLedger, record: Recorder, models: list[str]) -> None:
    """Look once. While the ledger is away its gauges show what they showed, `ledger_up` apart."""
    try:
        pulse = await ledger.pulse()
    except AppError:
        record.set(LEDGER_UP, 0)
        record.count(LEDGER_OUTAGES, operation="pulse")
        return
    record.set(LEDGER_UP, 1)
    record.set(LEDGER_IMBALANCE, pulse.imbalance)
    for model in models:
        work = pulse.open_work.get(model)
        record.set(HOLDS_OPEN, work.holds if work else 0, model=model)
        record.set(UNITS_HELD, work.units if work else 0, model=model)


async def watch_fleet(fleet: Fleet, record: Recorder) -> None:
    """Look once; a controller that does not answer says nothing."""
    try:
        found = await fleet()
    except Unavailable:
        return
    for model, replicas in found.items():
        for state in ("running", "starting", "stopping", "target"):
            count = getattr(replicas, state)
            if count is not None:
                record.set(REPLICAS, count, model=model, state=state)
