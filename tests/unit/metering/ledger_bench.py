"""What tests of the ledger share: a clock, many ledgers on one database, a paying customer."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from serve_app.config import LedgerConfig
from serve_app.metering.database import Database
from serve_app.metering.leases import BEATS, Watch
from serve_app.metering.sql import SqlLedger
from serve_app.metering.types import HoldRequest, Principal

START = datetime(2026, 1, 1, tzinfo=UTC)
TTL_S = 900.0


@dataclass
class Clock:
    """Time that passes only when a test says so."""

    now: datetime = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


@dataclass
class Bench:
    """A database, and as many independent ledgers on it as a test wants."""

    config: LedgerConfig
    clock: Clock = field(default_factory=Clock)
    ledgers: list[SqlLedger] = field(default_factory=list)

    def ledger(self, **changes: object) -> SqlLedger:
        """One more ledger with connections of its own: what another replica would have."""
        database = Database(self.config.model_copy(update=changes))
        self.ledgers.append(SqlLedger(database, self.clock))
        return self.ledgers[-1]

    async def close(self) -> None:
        for ledger in self.ledgers:
            await ledger.close()


LEASE_S = 60.0
TURN_S = LEASE_S / BEATS


@dataclass
class Steady:
    """A machine's own steady clock."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Fleet:
    """Gateways on one database that beat in turns, but for those that are down."""

    bench: Bench
    steady: Steady = field(default_factory=Steady)
    down: set[SqlLedger] = field(default_factory=set)
    refunded: int = 0
    """Units that were given back so far."""

    def gateway(self, make: type[Database] = Database) -> SqlLedger:
        watch = Watch(LEASE_S, self.steady)
        made = SqlLedger(make(self.bench.config), self.bench.clock, watch)
        self.bench.ledgers.append(made)
        return made

    async def live(self, seconds: float) -> int:
        """So much time passes; returns how many holds were taken from gateways."""
        released = 0
        for _ in range(round(seconds / TURN_S)):
            self.steady.now += TURN_S
            for gateway in self.bench.ledgers:
                if gateway not in self.down:
                    taken = await gateway.beat()
                    released += taken.expired
                    self.refunded += taken.refunded_units
        return released


@dataclass(frozen=True)
class Customer:
    """An account with units and one key."""

    principal: Principal
    secret: str

    def job(self, units: int = 4, **changes: object) -> HoldRequest:
        request = HoldRequest(
            account_id=self.principal.account_id,
            key_id=self.principal.key_id,
            request_id="req-1",
            model="flux-mini",
            n=1,
            width=2,
            height=2,
            steps=4,
            units=units,
            ttl_s=TTL_S,
        )
        return replace(request, **changes)  # type: ignore[arg-type]


async def make_customer(ledger: SqlLedger, units: int = 100, name: str = "alice") -> Customer:
    await ledger.admin.create_account(name)
    if units:
        await ledger.admin.grant(name, units)
    made = await ledger.admin.create_key(name)
    return Customer(await ledger.authenticate(made.secret), made.secret)
