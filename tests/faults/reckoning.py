"""Who got pictures, who paid, and whether the two agree: every hold against every client.

Data flow: what clients saw (`Attempt`), how each hold ended (`HoldRow`) and what was broken when
(`Fault`) -> `reckon` -> a count of each outcome, and a list of wrongs that must be empty. Pure.

A picture may be paid for and not delivered in one way only: the proxy that was about to send it
died after the charge. Such replies are counted (`charged, reply lost`); a client with an
idempotency key gets them by asking again, so for those the count must be zero in the end. What a
gateway charged and died with must be refunded. A picture may be delivered and not paid for in one
way only: the gateway that was about to charge it, or to confirm that it was delivered, died. And
every error must have a fault of a kind that leads to it, lately, and not before the last `calm`.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tests.faults.clients import Attempt

GATEWAYS = ("kill gateway", "kill node")
"""The proxy is on the node that is never killed."""
SENDERS = (*GATEWAYS, "kill proxy")
"""These lose replies that were on their way. A stall does not: it only makes them late."""
FAILURES = {500, 503, 504}
"""What a client may be told while things break. All are free, and worth another try."""
MARGIN_S = 1.0
"""A kill takes a moment to be seen by those who wait for the dead."""
CONFIRM_S = 3.0
"""Half a second until a delivery is confirmed, a stall of the gateway in between, a busy machine.
After an outage of the database as long again: the write that met it has to fail first."""
AFTERMATH_S = 30.0
"""What was killed is away until a busy machine has started another."""
SHOWN_S = 20.0
"""Around a wrong: the faults that its report names."""
KILLS = ("kill gateway", "kill model", "kill node", "kill controller")
CAUSES: dict[str, tuple[str, ...]] = {
    "internal_error": ("kill gateway", "kill node"),
    "generation_failed": ("kill model", "kill gateway and model", "kill node"),
    "ledger_unavailable": ("database",),
    "store_unavailable": ("store away",),
    "service_unavailable": KILLS,
    "server_is_overloaded": (*KILLS, "stall model"),
    "timeout": ("",),
    "idempotency_key_in_use": ("",),
}
"""Error code -> parts of the names of faults that may lead to it; any fault makes things late."""


@dataclass(frozen=True)
class Fault:
    kind: str
    began: float
    ended: float
    """When it was over; for a kill, when what was killed was back."""


@dataclass(frozen=True)
class HoldRow:
    """A hold as the database has it."""

    id: str
    request_id: str
    units: int
    captured_units: int
    state: str
    undelivered_by: str | None = None
    resolved_at: str = ""
    """For those who look for the cause of a wrong."""

    @property
    def ended(self) -> bool:
        """For good: it is not open, nor a charge that may yet be given back."""
        return self.state != "open" and self.undelivered_by is None


@dataclass
class Reckoning:
    counts: Counter[str] = field(default_factory=Counter)
    wrongs: list[str] = field(default_factory=list)
    charged: int = 0
    """Units captured for the attempts that were reckoned."""
    faults: Sequence[Fault] = ()


@dataclass(frozen=True)
class Allowed:
    """How long after a fault what it leads to may be seen; on a slow machine all takes longer."""

    charge_s: float = 0.0
    """For how long a gateway may be about to charge what it has delivered."""
    slowness: float = 1.0

    @property
    def margin_s(self) -> float:
        return MARGIN_S * self.slowness

    @property
    def confirm_s(self) -> float:
        return CONFIRM_S * self.slowness

    @property
    def aftermath_s(self) -> float:
        return AFTERMATH_S * self.slowness


def reckon(
    attempts: Sequence[Attempt],
    holds: Iterable[HoldRow],
    faults: Sequence[Fault],
    calms: Sequence[float] = (),
    allowed: "Allowed | None" = None,
) -> Reckoning:
    """Compare; every hold must belong to an attempt and have ended.

    Args:
        calms: moments at which all was seen to be well; no fault explains anything beyond one.
        allowed: how long after a fault what it leads to may be seen.
    """
    allowed = allowed or Allowed()
    by_request = {hold.request_id: hold for hold in holds}
    found = Reckoning(faults=faults)
    keyed: dict[str, list[tuple[Attempt, HoldRow | None]]] = {}
    for attempt in attempts:
        hold = by_request.pop(attempt.request_id, None)
        if hold is not None and not hold.ended:
            _wrong(found, attempt, hold, "its hold never ended")
        if problem := _problem(attempt, faults, calms, allowed):
            _wrong(found, attempt, hold, problem)
        if attempt.key is not None:
            keyed.setdefault(attempt.key, []).append((attempt, hold))
            if hold is not None and hold.state == "refunded":
                _wrong(found, attempt, hold, "refunded, and yet to be fetched under its key")
            found.charged += hold.captured_units if hold else 0
            _note_key(found, attempt, hold)
            continue
        charged = hold.captured_units if hold else 0
        found.charged += charged
        if hold is not None and hold.state == "refunded":
            outcome = _refunded(attempt, faults, allowed)
        else:
            outcome = _outcome(attempt, charged, faults, allowed)
        if outcome is None:
            _wrong(found, attempt, hold, "charge and delivery disagree")
        else:
            found.counts[outcome] += 1
    for hold in by_request.values():
        found.wrongs.append(f"a hold of nobody: {hold}")
    _close_keys(found, keyed)
    return found


def _wrong(found: Reckoning, attempt: Attempt, hold: HoldRow | None, problem: str) -> None:
    seen = f"status {attempt.status}, error {attempt.error}, pictures {len(attempt.pictures)}"
    more = f"finished {attempt.finished}, left {attempt.left}, broken {attempt.broken!r}"
    times = f"{attempt.began:.2f} to {attempt.ended:.2f}"
    broken = ", ".join(
        f"{fault.kind} {fault.began - attempt.began:+.1f} to {fault.ended - attempt.began:+.1f}"
        for fault in found.faults
        if fault.began - SHOWN_S < attempt.ended and attempt.began < fault.ended + SHOWN_S
    )
    found.wrongs.append(
        f"{problem}: {attempt.request_id} {attempt.body} {times}; {seen}, {more}; {hold}; "
        f"broken, in seconds from its beginning: {broken}"
    )


def _problem(
    attempt: Attempt, faults: Sequence[Fault], calms: Sequence[float], allowed: Allowed
) -> str:
    """What is wrong with a reply, or with an error that nothing explains; empty if nothing is."""
    return _reply_problem(attempt, faults, allowed) or _unexplained(attempt, faults, calms, allowed)


def _reply_problem(attempt: Attempt, faults: Sequence[Fault], allowed: Allowed) -> str:
    """What this client should not have seen; empty if all is well."""
    if attempt.wrong:
        return attempt.wrong
    if attempt.left:
        return ""
    if attempt.broken or not attempt.finished:
        # A reply in the middle of its stream can only break off when its gateway dies.
        senders = SENDERS if attempt.status is not None else ("proxy",)
        return "" if _during(attempt, faults, senders, allowed) else "a broken connection"
    if attempt.status == 200:
        if attempt.error is None and attempt.streams and len(attempt.pictures) != attempt.n:
            return "a stream that ends early and does not say why"
        return ""
    if attempt.status == 409 and attempt.key is not None:
        code = attempt.error["code"] if attempt.error else None
        return "" if code == "idempotency_key_in_use" else "a key that is its own is refused"
    return "" if attempt.status in FAILURES else "an unexpected status"


def _unexplained(
    attempt: Attempt, faults: Sequence[Fault], calms: Sequence[float], allowed: Allowed
) -> str:
    """Why nothing that was broken accounts for this error; empty if something does."""
    if attempt.error is None or attempt.left:
        return ""
    causes = CAUSES.get(str(attempt.error["code"]), ())
    calm = max((at for at in calms if at <= attempt.began), default=0.0)
    for fault in faults:
        lately = fault.began <= attempt.ended and attempt.began <= fault.ended + allowed.aftermath_s
        if lately and fault.ended > calm and any(cause in fault.kind for cause in causes):
            return ""
    return f"no fault explains {attempt.error['code']}"


def _outcome(
    attempt: Attempt, charged: int, faults: Sequence[Fault], allowed: Allowed
) -> str | None:
    """What became of a request without a key; None when nothing may end so."""
    delivered = attempt.price(attempt.n if attempt.served else len(attempt.pictures))
    if charged == delivered:
        return "delivered and charged" if charged else _free(attempt)
    if charged < delivered:
        return "given away" if _charger_died(attempt, faults, allowed) else None
    if attempt.left:
        return "charged, client left"
    return "charged, reply lost" if _during(attempt, faults, ("kill proxy",), allowed) else None


def _refunded(attempt: Attempt, faults: Sequence[Fault], allowed: Allowed) -> str | None:
    """What became of a request whose charge was given back: whoever had made it has died.

    It dies before it has sent the reply, or soon after, before it has told the database. Where
    nobody waits for the reply any more, it may be charged as long as a job takes.
    """
    if attempt.streams:
        return None
    delivered = attempt.served or attempt.pictures
    confirmed = attempt.ended + (allowed.confirm_s if delivered else allowed.charge_s)
    for fault in sorted(faults, key=lambda one: one.began):
        if "database" in fault.kind and attempt.began <= fault.ended and fault.began <= confirmed:
            confirmed = max(confirmed, fault.ended + 2 * allowed.confirm_s)
    died = (fault for fault in faults if fault.kind.startswith(GATEWAYS))
    if not any(attempt.began <= fault.ended and fault.began <= confirmed for fault in died):
        return None
    if delivered:
        return "given away"
    return "client left, refunded" if attempt.left else "reply lost, refunded"


def _charger_died(attempt: Attempt, faults: Sequence[Fault], allowed: Allowed) -> bool:
    """Whether whoever had delivered this died before it could charge.

    Streams are charged after they were sent. Any reply may go before its charge where the database
    broke off just then, and leaves the gateway with a charge to make sure of.
    """
    if attempt.streams and _during(attempt, faults, SENDERS, allowed):
        return True
    if not _during(attempt, faults, ("database",), allowed):
        return False
    died = (fault for fault in faults if fault.kind.startswith(GATEWAYS))
    return any(attempt.began <= fault.ended <= attempt.ended + allowed.charge_s for fault in died)


def _free(attempt: Attempt) -> str:
    if attempt.left:
        return "client left, free"
    return f"failed, free: {attempt.error['code'] if attempt.error else 'connection lost'}"


def _during(
    attempt: Attempt, faults: Sequence[Fault], kinds: Sequence[str], allowed: Allowed
) -> bool:
    return any(
        any(kind in fault.kind for kind in kinds)
        and fault.began <= attempt.ended
        and attempt.began <= fault.ended + allowed.margin_s
        for fault in faults
    )


def _note_key(found: Reckoning, attempt: Attempt, hold: HoldRow | None) -> None:
    if hold is not None and hold.captured_units and not attempt.served:
        found.counts["with a key: charged, got by asking again"] += 1
    elif attempt.served:
        found.counts["with a key: replayed" if hold is None else "with a key: drawn"] += 1
    else:
        found.counts["with a key: tried again"] += 1


def _close_keys(found: Reckoning, keyed: "dict[str, list[tuple[Attempt, HoldRow | None]]]") -> None:
    """Under a key there is one job: delivered in the end, and charged once."""
    for key, tries in keyed.items():
        last = tries[-1][0]
        if not last.served:
            found.wrongs.append(f"key {key} never got its pictures: {last}")
        charged = sum(hold.captured_units for _, hold in tries if hold)
        if charged != last.price(last.n):
            found.wrongs.append(f"key {key} was charged {charged}: {tries}")
