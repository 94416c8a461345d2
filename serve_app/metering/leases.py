"""Leases: a gateway that gives no sign of life loses its holds, long before they would expire, and
its charges for replies that it has not sent.

Data flow: `SqlLedger.beat`, every few seconds -> this gateway's row of `gateways` is counted up ->
how far those stand that own any of these -> `Watch` -> the ids of those that stood still for a
lease.

No clock is compared with another machine's: a watcher times, with a steady clock of its own, how
long it has seen a count stand still. And it counts only time in which its own beats went through,
for as long as the database is away, or the watcher itself is stopped, nobody can be told from dead.

To be taken for dead is harmless: a hold ends once, so what a gateway that was merely stopped
captures late charges nothing, and its client gets an error instead of the pictures. Only a reply
that it had charged for and sends late is given away.
"""

import time
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta

from sqlalchemy import delete, func, insert, select, union, update

from serve_app.metering.database import Database
from serve_app.metering.tables import OPEN, UNDELIVERED, gateways, holds

BEATS = 6
"""Signs of life in a lease: some may get lost on the way."""
FORGET_AFTER = timedelta(days=1)
"""Rows of gateways that stopped are kept so long, for people who look."""
OWNED = ((holds.c.gateway_id, OPEN), (holds.c.undelivered_by, UNDELIVERED))
"""What names its gateway; the conditions are those of partial indexes."""


class Watch:
    """What one gateway has seen of the others, by its own steady clock."""

    def __init__(self, lease_s: float, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._looked_at = monotonic()
        self._seen: dict[str, tuple[int, float]] = {}
        """By gateway: its count, and since when it has been that."""

    def look(self, beats: Mapping[str, int]) -> list[str]:
        """Take note of all counts; returns the gateways that stood still for a lease, sorted.

        Call it right after a beat of one's own.
        """
        now = self._monotonic()
        if now - self._looked_at > 2 * self._lease_s / BEATS:
            self._seen.clear()  # who could not write for so long cannot blame others for it
        self._looked_at = now
        before = self._seen
        self._seen = {
            one: before[one] if one in before and before[one][0] == count else (count, now)
            for one, count in beats.items()
        }
        return sorted(one for one, (_, since) in self._seen.items() if now - since >= self._lease_s)


class Leases:
    """This gateway's sign of life, and its watch over the others."""

    def __init__(
        self, database: Database, clock: Callable[[], datetime], gateway_id: str, watch: Watch
    ) -> None:
        self._database = database
        self._clock = clock
        self._id = gateway_id
        self._watch = watch
        self.alive = False
        """Whether others could have heard of this gateway: holds are in its name from then on."""

    async def beat(self) -> list[str]:
        """Give a sign of life; returns the gateways that own any and gave none for a lease."""
        if not self.alive:
            await self._forget()
        async with self._database.write() as connection:
            values = {"beats": gateways.c.beats + 1, "seen_at": self._clock()}
            mine = update(gateways).where(gateways.c.id == self._id).values(values)
            if not (await connection.execute(mine)).rowcount:
                first = {"id": self._id, "beats": 1, "seen_at": self._clock()}
                await connection.execute(insert(gateways), first)
        self.alive = True
        owner = union(
            *(
                select(column.label("id")).where(which, column.is_not(None), column != self._id)
                for column, which in OWNED
            )
        ).subquery()
        owners = select(owner.c.id, func.coalesce(gateways.c.beats, 0)).outerjoin(
            gateways, gateways.c.id == owner.c.id
        )
        async with self._database.read() as connection:
            found = (await connection.execute(owners)).all()
        return self._watch.look({owner: int(count) for owner, count in found})

    async def _forget(self) -> None:
        """Once, at the start; apart from the beat, so that no row is waited for with another."""
        old = delete(gateways).where(gateways.c.seen_at < self._clock() - FORGET_AFTER)
        async with self._database.write() as connection:
            await connection.execute(old)
