"""Budgets: what the redemptions of a book may take off together."""

from __future__ import annotations

import pytest
from unit.rules.commands import call, eur, lock, redeem, rollback, user_call
from unit.rules.world import BOOK_ID, World, book, lockable

from coupon_service.errors import BudgetExceeded, CurrencyMismatch, OrderAmountRequired
from coupon_service.model import BookTotals, Money, PercentOff


def spent_minor(world: World) -> int:
    return world.state.totals[BOOK_ID].discount_minor


def test_a_redemption_takes_its_discount_from_the_budget() -> None:
    world = World(book(budget_minor=1_200))
    world.does(redeem("A"))
    world.does(redeem("B", amount=eur(300)))
    assert world.state.totals == {BOOK_ID: BookTotals(redemptions=2, discount_minor=800)}


def test_what_is_not_left_is_refused_and_never_clipped() -> None:
    world = World(book(budget_minor=999))
    world.does(redeem("A"))
    error = world.refuses(redeem("B"))
    assert type(error) is BudgetExceeded
    assert error.metadata == {"limit_minor": "999", "left_minor": "499", "currency_code": "EUR"}
    assert world.does(redeem("B", amount=eur(499))).event.discount_minor == 499
    assert type(world.refuses(redeem("C", amount=eur(1)))) is BudgetExceeded


def test_what_takes_nothing_off_needs_no_budget() -> None:
    world = World(book(budget_minor=500))
    world.does(redeem("A"))
    world.does(redeem("B", amount=eur(0)))


def test_a_rollback_gives_the_budget_back() -> None:
    world = World(book(budget_minor=500))
    redeemed = world.does(redeem("A")).event
    world.refuses(redeem("B"))
    world.does(rollback(redeemed))
    assert spent_minor(world) == 0
    world.does(redeem("B"))


def test_commands_of_a_batch_see_what_those_before_took() -> None:
    world = World(book(budget_minor=1_000))
    outcomes = world.batch(redeem("A"), redeem("B"), redeem("C"))
    assert [type(it).__name__ for it in outcomes] == ["Done", "Done", "BudgetExceeded"]
    assert spent_minor(world) == 1_000


def test_a_refused_group_leaves_the_budget() -> None:
    world = World(book(budget_minor=1_000))
    outcomes = world.all_or_nothing(redeem("A"), redeem("B"), redeem("C"))
    assert [type(it) for it in outcomes] == [BudgetExceeded] * 3
    assert spent_minor(world) == 0


def test_a_budget_below_what_was_taken_has_nothing_left() -> None:
    world = World(book(budget_minor=1_000))
    redeemed = [world.does(redeem(code)).event for code in "AB"]
    world.change_book(budget_minor=600)
    assert world.refuses(redeem("C")).metadata["left_minor"] == "0"
    world.does(rollback(redeemed[0]))
    assert world.refuses(redeem("C")).metadata["left_minor"] == "100"
    world.change_book(budget_minor=1_000)
    world.does(redeem("C"))


def test_a_percentage_of_an_unknown_amount_is_refused() -> None:
    world = World(book(discount=PercentOff(1_000, 0), budget_minor=100))
    assert type(world.refuses(redeem())) is OrderAmountRequired
    assert type(world.refuses(redeem(amount=Money(1, "USD")))) is CurrencyMismatch
    assert world.does(redeem(amount=eur(1_000))).event.discount_minor == 100


def test_an_end_user_is_not_told_how_much_is_left() -> None:
    error = World(book(budget_minor=499)).refuses(redeem(by=user_call()))
    assert type(error) is BudgetExceeded
    assert error.metadata == {}


@pytest.mark.parametrize(("budget_minor", "refused"), [(500, True), (501, False)])
def test_a_lock_holds_none_of_the_budget_and_is_refused_when_nothing_is_left(
    budget_minor: int, refused: bool
) -> None:
    world = lockable(budget_minor=budget_minor)
    world.does(redeem("A", lease=lock().lease))
    if refused:
        assert type(world.refuses(lock("B"))) is BudgetExceeded
    else:
        world.does(lock("B", by=call("r1")))
        world.does(lock("C", by=call("r2")))
        assert spent_minor(world) == 500


def test_no_total_is_counted_that_the_book_does_not_limit() -> None:
    world = World(book(max_redemptions=5))
    world.does(redeem())
    assert world.state.totals == {BOOK_ID: BookTotals(redemptions=1)}
