"""The ledger check: what the account was charged equals the delivered images, to the unit.

Data flow: `GET /v1/account` before and after + outcomes + quoted prices -> `Books` -> verdict. A
request that was cut off on this side may or may not have been charged; that doubt is stated, never
rounded away.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from serve_app.loadtest.outcome import DOUBTFUL, Outcome

SUMS_MAX = 200_000
"""Different sums kept when doubtful prices are combined; beyond it anything is possible."""


class Standing(StrEnum):
    """How the books stand."""

    EQUAL = "equal"
    DOUBTFUL = "doubtful"
    WRONG = "wrong"


@dataclass(frozen=True)
class Balance:
    """An account at one moment, in compute units."""

    captured: int
    held: int
    available: int


@dataclass(frozen=True)
class Books:
    """Both sides of the account over the test, in compute units."""

    before: Balance
    after: Balance
    delivered_units: int
    doubtful_units: tuple[int, ...]
    """Quoted price of each request whose end the client does not know."""
    mispriced: int
    """Delivered requests whose price was not the quoted one."""

    @property
    def charged_units(self) -> int:
        return self.after.captured - self.before.captured

    @property
    def surplus_units(self) -> int:
        """Charged beyond what the delivered replies said."""
        return self.charged_units - self.delivered_units

    @property
    def standing(self) -> Standing:
        if self.after.held or self.mispriced or self.surplus_units < 0:
            return Standing.WRONG
        if self.surplus_units == 0:
            return Standing.EQUAL
        possible = can_sum_to(self.surplus_units, self.doubtful_units)
        return Standing.DOUBTFUL if possible else Standing.WRONG

    def explain(self) -> str:
        """One sentence for people."""
        charged, delivered = f"{self.charged_units:,} CU", f"{self.delivered_units:,} CU"
        cut = len(self.doubtful_units)
        if self.after.held:
            return (
                f"{self.after.held:,} CU are still held after all of this test's requests ended: "
                "another client uses this account, or a hold was not resolved"
            )
        if self.mispriced:
            return f"{self.mispriced:,} replies charged another price than the quoted one"
        if self.surplus_units < 0:
            return f"charged {charged}, less than the {delivered} that the replies said"
        if self.standing is Standing.EQUAL:
            tail = f"; {cut:,} cut-off requests cost nothing" if cut else ""
            return f"charged {charged} = delivered {delivered}{tail}"
        if self.standing is Standing.DOUBTFUL:
            return (
                f"charged {charged}, delivered {delivered}: the {self.surplus_units:,} CU between "
                f"fit some of the {cut:,} requests that were cut off before their reply was read"
            )
        return (
            f"charged {charged}, but only {delivered} were delivered: another client spent on this "
            "account during the test, or the server overcharged"
        )


def can_sum_to(total: int, amounts: Iterable[int]) -> bool:
    """Whether some of the amounts add up to `total`; True also where there are too many to try."""
    sums = {0}
    for amount in amounts:
        sums |= {one + amount for one in sums if one + amount <= total}
        if len(sums) > SUMS_MAX:
            return True
    return total in sums


def reconcile(
    before: Balance, after: Balance, outcomes: Iterable[Outcome], prices: Sequence[int]
) -> Books:
    """The books of a test; `prices` are the quoted units of each entry of the mix."""
    delivered, doubtful, mispriced = 0, [], 0
    for outcome in outcomes:
        if outcome.delivered:
            delivered += outcome.units
            mispriced += outcome.units != prices[outcome.entry]
        elif outcome.code in DOUBTFUL:
            doubtful.append(prices[outcome.entry])
    return Books(before, after, delivered, tuple(doubtful), mispriced)
