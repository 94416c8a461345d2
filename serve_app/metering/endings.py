"""Ends of holds inside one SQL transaction: captures, releases, expiries, refunds.

Data flow: `batch.run_batch` -> `take` changes the holds, by id -> for each account `settle` books
what that comes to, under the lock of the account's row -> `enter` writes the entries. The order of
locks is that of `batch`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime

from sqlalchemy import Connection

from serve_app.metering import endstatements as sql
from serve_app.metering import usage
from serve_app.metering.operations import Ending, Outcome, Refund, Resolve
from serve_app.metering.statements import INSERT_ENTRY
from serve_app.metering.types import HoldState, Resolution, UnknownHold


@dataclass(frozen=True)
class Ended:
    """A hold that this SQL transaction ended, before its account is settled."""

    index: int
    operation: Ending
    held: int
    """Units that it no longer holds."""
    charge: usage.Captured
    """What is charged; of a refund: what was, on `day`, and is given back."""
    day: date

    @property
    def charged(self) -> int:
        """Units that the account pays; negative for a refund."""
        return -self.charge.units if isinstance(self.operation, Refund) else self.charge.units

    @property
    def resolution(self) -> tuple[HoldState, int]:
        one = self.operation
        return (HoldState.REFUNDED, 0) if isinstance(one, Refund) else (one.state, one.units)


class Endings:
    """Of one SQL transaction; `outcomes` by the operation's place in the batch."""

    def __init__(self, connection: Connection, now: datetime, outcomes: dict[int, Outcome]) -> None:
        self._connection = connection
        self._now = now
        self._outcomes = outcomes
        self._late: list[tuple[int, Ending]] = []
        """Those whose holds had ended before, or hold too little."""

    def take(self, wanted: Sequence[tuple[int, Ending]]) -> list[Ended]:
        """End the holds that can be ended so."""
        ended = []
        for index, one in sorted(wanted, key=lambda pair: pair[1].hold_id):  # stable: in order
            end = self._refund(index, one) if isinstance(one, Refund) else self._resolve(index, one)
            if end is None:
                self._late.append((index, one))
            else:
                ended.append(end)
        return ended

    def _resolve(self, index: int, one: Resolve) -> Ended | None:
        values = {
            "hold_id": one.hold_id,
            "to": one.state.value,
            "charge": one.units,
            "reply": one.reply,
            "undelivered_by": one.undelivered_by,
            "now": self._now,
        }
        row = self._connection.execute(sql.RESOLVE, values).one_or_none()
        if row is None:
            return None
        images = usage.images_of(row.images, row.units, one.units)
        charge = usage.Captured(row.account_id, row.key_id, row.model, images, one.units)
        return Ended(index, one, row.units, charge, self._now.date())

    def _refund(self, index: int, one: Refund) -> Ended | None:
        values = {"hold_id": one.hold_id, "charge": one.units}
        row = self._connection.execute(sql.REFUND, values).one_or_none()
        if row is None:
            return None
        images = usage.images_of(row.images, row.units, one.units)
        charge = usage.Captured(row.account_id, row.key_id, row.model, images, one.units)
        return Ended(index, one, 0, charge, row.resolved_at.date())

    def settle(self, account_id: str, ended: Sequence[Ended]) -> None:
        """Book what ended on its account, all of it in one UPDATE."""
        values = {
            "account_id": account_id,
            "give_back": sum(one.held for one in ended),
            "charge": sum(one.charged for one in ended),
        }
        available = self._connection.execute(sql.SETTLE, values).scalar_one()
        usage.add(
            self._connection, self._now.date(), (one.charge for one in ended if one.charged > 0)
        )
        usage.take_back(
            self._connection, ((one.day, one.charge) for one in ended if one.charged < 0)
        )
        for one in ended:
            resolution = Resolution(one.operation.hold_id, *one.resolution, available)
            self._outcomes[one.index] = resolution

    def enter(self, ended: Sequence[Ended]) -> None:
        """One entry for each capture and each refund."""
        rows = [
            {
                "account_id": one.charge.account_id,
                "kind": "capture" if one.charged > 0 else "refund",
                "units": -one.charged,
                "hold_id": one.operation.hold_id,
                "created_at": self._now,
                "memo": "",
            }
            for one in ended
            if one.charged
        ]
        if rows:
            self._connection.execute(INSERT_ENTRY, rows)

    def tell_late(self) -> None:
        """The outcomes of operations that ended nothing."""
        for index, one in self._late:
            self._outcomes[index] = self._first_outcome(one)

    def _first_outcome(self, one: Ending) -> Outcome:
        """How a hold that this operation did not end stands."""
        if isinstance(one, Refund) or one.state is HoldState.EXPIRED:
            return None  # somebody was faster than the sweep
        row = self._connection.execute(sql.OUTCOME, {"hold_id": one.hold_id}).one_or_none()
        if row is None:
            return UnknownHold(one.hold_id)
        if row.state == HoldState.OPEN:
            return ValueError("a capture may not charge more than its hold")
        return Resolution(one.hold_id, HoldState(row.state), row.captured_units, row.available)
