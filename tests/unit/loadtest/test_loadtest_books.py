"""The ledger check: equal, in doubt, or wrong; never rounded."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from load_kit import PRICE, outcome

from serve_app.loadtest.books import Balance, Books, Standing, can_sum_to, reconcile
from serve_app.loadtest.outcome import DOUBTFUL, Outcome

DELIVERED = [outcome(0), outcome(1), outcome(2)]
PRICES = [PRICE, 7]


def books(outcomes: list[Outcome], charged: int, held: int = 0) -> Books:
    return reconcile(Balance(50, 0, 0), Balance(50 + charged, held, 0), outcomes, PRICES)


def test_charged_as_delivered_is_equal() -> None:
    found = books(DELIVERED, 3 * PRICE)
    assert found.standing is Standing.EQUAL
    assert "charged 300 CU = delivered 300 CU" in found.explain()


@pytest.mark.parametrize("charged", [3 * PRICE - 1, 3 * PRICE + 1, 0, 4 * PRICE])
def test_one_unit_more_or_less_is_wrong(charged: int) -> None:
    assert books(DELIVERED, charged).standing is Standing.WRONG


def test_refused_requests_cost_nothing() -> None:
    refused = outcome(3, code="server_is_overloaded", status=503)
    assert books([*DELIVERED, refused], 4 * PRICE).standing is Standing.WRONG
    assert books([*DELIVERED, refused], 3 * PRICE).standing is Standing.EQUAL


@pytest.mark.parametrize("code", sorted(DOUBTFUL))
def test_a_cut_off_request_may_have_been_charged(code: str) -> None:
    cut = [outcome(3, code=code), outcome(4, code=code, entry=1)]
    assert books([*DELIVERED, *cut], 3 * PRICE).standing is Standing.EQUAL
    for possible in (PRICE, 7, PRICE + 7):
        found = books([*DELIVERED, *cut], 3 * PRICE + possible)
        assert found.standing is Standing.DOUBTFUL
        assert f"{possible:,} CU between" in found.explain()
    for impossible in (1, 8, PRICE + 8, -1):
        assert books([*DELIVERED, *cut], 3 * PRICE + impossible).standing is Standing.WRONG


def test_units_still_held_belong_to_somebody_else() -> None:
    found = books(DELIVERED, 3 * PRICE, held=5)
    assert found.standing is Standing.WRONG
    assert "another client" in found.explain()


def test_another_price_than_the_quoted_one_is_wrong_even_when_the_sum_fits() -> None:
    swapped = [outcome(0, units=PRICE + 1), outcome(1, units=PRICE - 1)]
    found = books(swapped, 2 * PRICE)
    assert (found.surplus_units, found.standing) == (0, Standing.WRONG)


@given(st.lists(st.integers(1, 30), max_size=8), st.integers(0, 120))
def test_subset_sums_are_found(amounts: list[int], total: int) -> None:
    every = {
        sum(one for bit, one in enumerate(amounts) if mask >> bit & 1)
        for mask in range(2 ** len(amounts))
    }
    assert can_sum_to(total, amounts) == (total in every)
