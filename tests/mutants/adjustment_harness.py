"""What has to catch the mutants of adjustments."""

from __future__ import annotations

from collections.abc import Callable

from mutants.harness import Stack
from mutants.meeting import one_within_another
from support.service import Api, books, euros

ROUNDS = 10
TEN_PERCENT = books.Discount(percent_off=books.PercentOff(basis_points=1_000))


def redemption_of(api: Api) -> str:
    """One for an order of 100.00, with 10 % off."""
    code = api.code(discount=TEN_PERCENT)
    return api.redeem(code, "user", order_amount=euros(10_000)).redemption.redemption_id


def adjustment_after_the_book_changed(it: Stack) -> None:
    """The terms are those of the redemption."""
    one, other = it.apis
    redemption_id = redemption_of(one)
    book_id = one.adjust(redemption_id, euros(9_000)).redemption.book_id
    half = books.Discount(percent_off=books.PercentOff(basis_points=5_000))
    one.update(book_id, discount=half)
    assert other.adjust(redemption_id, euros(8_000)).redemption.discount == euros(800)


def race_of_adjustments_and_rollbacks(it: Stack) -> None:
    """However many change a redemption at the same moment, the sums are right."""
    one, other = it.apis
    of = redemption_of(one)
    seconds: list[Callable[[], object]] = [
        lambda: other.adjust(of, euros(2_000)),
        lambda: other.rollback(of),
    ]
    for second in seconds:
        found = one_within_another(it.database_url, lambda: one.adjust(of, euros(5_000)), second)
        it.conserved()
        assert found == ["OK", "OK"], found
    for _ in range(ROUNDS):
        redemption_id = redemption_of(it.apis[0])

        def change(api: Api, n: int, of: str = redemption_id) -> object:
            return api.rollback(of) if n == 7 else api.adjust(of, euros(1_000 * (n % 10)))

        it.all_at_once(change)
    it.conserved()
