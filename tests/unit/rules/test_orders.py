"""Orders: which coupons go together, and what they take off together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
from unit.rules.commands import eur, lock, redeem, rollback, user_call
from unit.rules.world import BOOK_ID, PERMIT, World, book

from coupon_service.errors import (
    CouponsNotCombinable,
    CurrencyMismatch,
    ExclusiveGroupUsed,
    OrderAmountRequired,
    OrderFullyDiscounted,
    OrderIdRequired,
    OrderLimitExceeded,
)
from coupon_service.model import (
    Benefit,
    Book,
    Code,
    CodeState,
    CommandGroup,
    Done,
    LeaseNeeded,
    LockPolicy,
    Money,
    OrderCoupons,
    OrderPolicy,
    PercentOff,
    Redeem,
)
from coupon_service.rules.orders import discount_on_order

COMBINABLE, EXCLUSIVE, INDEPENDENT = (
    OrderPolicy.COMBINABLE,
    OrderPolicy.EXCLUSIVE,
    OrderPolicy.INDEPENDENT,
)
OTHER = UUID(int=2)
SIXTY = PercentOff(6_000, 0)


def of_book(policy: OrderPolicy = COMBINABLE, book_id: UUID = BOOK_ID, **rules: Any) -> Book:
    values: dict[str, Any] = {"discount": SIXTY, "order_policy": policy, **rules}
    return book(book_id, **values)


def world(first: Book, second: Book | None = None) -> World:
    """A, B and C of the first book, X and Y of the second."""
    made = World(first, *(() if second is None else (second,)))
    for code in "XY" if second is not None else "":
        made.put(Code(code, OTHER, CodeState.AVAILABLE, 0, 0))
    return made


def for_order(code: str = "A", amount_minor: int = 10_000, **more: Any) -> Redeem:
    values: dict[str, Any] = {"order": "o1", "amount": eur(amount_minor), **more}
    return redeem(code, **values)


def off_minor(done: Done) -> int | None:
    return done.event.discount_minor


def on_order(of: World, order: str = "o1", user: str = "") -> OrderCoupons:
    return of.state.order_coupons["business", order, user]


class TestDiscounts:
    def test_independent_books_do_not_mind_each_other(self) -> None:
        it = World(book(discount=SIXTY))
        assert [off_minor(it.does(for_order(code))) for code in "AB"] == [6_000, 6_000]
        assert it.state.order_coupons == {}

    def test_coupons_take_off_no_more_than_the_order_together(self) -> None:
        it = world(of_book())
        assert [off_minor(it.does(for_order(code))) for code in "AB"] == [6_000, 4_000]
        error = it.refuses(for_order("C"))
        assert type(error) is OrderFullyDiscounted
        assert error.metadata == {"discount_minor": "10000", "currency_code": "EUR"}

    def test_a_discount_is_that_of_the_whole_amount_where_enough_is_left(self) -> None:
        it = world(of_book(), of_book(book_id=OTHER, discount=PercentOff(1_000, 0)))
        assert off_minor(it.does(for_order("X"))) == 1_000
        assert off_minor(it.does(for_order("A"))) == 6_000
        assert off_minor(it.does(for_order("Y"))) == 1_000

    def test_what_is_left_is_that_of_the_amount_of_the_call(self) -> None:
        it = world(of_book())
        it.does(for_order("A", 10_000))
        assert type(it.refuses(for_order("B", 6_000))) is OrderFullyDiscounted
        assert off_minor(it.does(for_order("B", 6_001))) == 1

    def test_commands_of_a_batch_see_those_before(self) -> None:
        it = world(of_book())
        outcomes = it.batch(*map(for_order, "ABC"))
        assert [type(outcome) for outcome in outcomes] == [Done, Done, OrderFullyDiscounted]
        assert on_order(it).discount_minor == 10_000

    def test_a_refused_group_leaves_the_order(self) -> None:
        it = world(of_book())
        it.all_or_nothing(*map(for_order, "ABC"))
        assert it.state.order_coupons == {}

    def test_a_rollback_takes_the_coupon_off_the_order(self) -> None:
        it = world(of_book())
        first = it.does(for_order("A")).event
        it.does(for_order("B"))
        it.does(rollback(first))
        assert on_order(it).discount_minor == 4_000
        assert off_minor(it.does(for_order("C"))) == 6_000

    def test_the_budget_gives_what_is_taken_off_and_no_more(self) -> None:
        it = world(of_book(budget_minor=10_000))
        it.does(for_order("A"))
        it.does(for_order("B"))
        assert it.state.totals[BOOK_ID].discount_minor == 10_000

    def test_an_order_of_another_currency_is_refused(self) -> None:
        gift = of_book(book_id=OTHER, discount=Benefit("a gift"), currency_code="")
        it = world(of_book(), gift)
        redeemed = it.does(for_order("A")).event
        error = it.refuses(for_order("X", amount=Money(10_000, "USD")))
        assert type(error) is CurrencyMismatch
        assert "coupons on the order" in error.message
        assert error.metadata == {"currency_code": "EUR"}
        it.does(rollback(redeemed))
        it.does(for_order("X", amount=Money(10_000, "USD")))


class TestCombining:
    @pytest.mark.parametrize(
        ("first", "second"),
        [(COMBINABLE, EXCLUSIVE), (EXCLUSIVE, COMBINABLE), (EXCLUSIVE, EXCLUSIVE)],
    )
    def test_an_exclusive_coupon_is_alone(self, first: OrderPolicy, second: OrderPolicy) -> None:
        it = world(of_book(first), of_book(second, OTHER))
        redeemed = it.does(for_order("A")).event
        assert type(it.refuses(for_order("X"))) is CouponsNotCombinable
        it.does(for_order("X", order="o2"))
        it.does(rollback(redeemed))
        it.does(for_order("Y"))

    @pytest.mark.parametrize("policy", [COMBINABLE, EXCLUSIVE])
    def test_an_independent_coupon_goes_with_any(self, policy: OrderPolicy) -> None:
        it = world(of_book(policy), of_book(INDEPENDENT, OTHER))
        it.does(for_order("X"))
        it.does(for_order("A"))
        it.does(for_order("Y"))

    def test_of_an_exclusive_group_an_order_has_one_coupon(self) -> None:
        group: dict[str, Any] = {"exclusive_group": "shipping"}
        it = world(of_book(**group), of_book(book_id=OTHER, **group))
        it.does(for_order("A"))
        for code in "BX":
            error = it.refuses(for_order(code))
            assert type(error) is ExclusiveGroupUsed
            assert error.metadata == {"exclusive_group": "shipping"}
        it.change_book(exclusive_group="")
        it.state.order_coupons["business", "o1", ""] = OrderCoupons()
        it.does(for_order("B"))
        it.does(for_order("X"))

    def test_an_order_has_as_many_coupons_of_a_book_as_it_allows(self) -> None:
        it = world(of_book(max_redemptions_per_order=2, discount=PercentOff(100, 0)))
        first = it.does(for_order("A")).event
        it.does(for_order("B"))
        error = it.refuses(for_order("C"))
        assert type(error) is OrderLimitExceeded
        assert error.metadata == {"limit": "2"}
        it.does(rollback(first))
        it.does(for_order("C"))

    def test_benefits_count_as_coupons_and_need_nothing_to_be_left(self) -> None:
        gift = of_book(book_id=OTHER, discount=Benefit("a gift"), max_redemptions_per_order=1)
        it = world(of_book(), gift)
        it.does(for_order("A"))
        it.does(for_order("B"))
        assert off_minor(it.does(for_order("X"))) is None
        assert type(it.refuses(for_order("Y"))) is OrderLimitExceeded

    def test_books_of_other_businesses_do_not_mind(self) -> None:
        other = replace(of_book(EXCLUSIVE, OTHER), business_id="another")
        it = world(of_book(), other)
        it.does(for_order("A"))
        it.does(for_order("X"))


class TestOrders:
    def test_an_order_id_and_for_combinable_ones_an_amount_are_needed(self) -> None:
        it = world(of_book())
        assert type(it.refuses(for_order(order=""))) is OrderIdRequired
        assert type(it.refuses(for_order(amount=None))) is OrderAmountRequired
        alone = world(of_book(EXCLUSIVE))
        assert type(alone.refuses(for_order(order=""))) is OrderIdRequired
        alone.does(for_order(amount=None))

    def test_orders_of_end_users_are_their_own(self) -> None:
        it = world(of_book(EXCLUSIVE))
        it.does(for_order("A", by=user_call("ann")))
        it.does(for_order("B", user="bob", by=user_call("bob")))
        assert type(it.refuses(for_order("C", by=user_call("ann")))) is CouponsNotCombinable
        it.does(for_order("C"))
        assert on_order(it, user="ann").books == on_order(it).books

    def test_locks_do_not_know_orders(self) -> None:
        it = world(of_book(EXCLUSIVE, lock_policy=LockPolicy.OPTIONAL))
        it.does(for_order("A", lease=PERMIT))
        it.does(lock("B"))
        assert type(it.refuses(for_order("B", lease=PERMIT))) is CouponsNotCombinable

    def test_what_is_no_redemption_waits_for_no_lease(self) -> None:
        it = world(of_book(lock_policy=LockPolicy.OPTIONAL))
        (outcomes,) = it.run(CommandGroup((for_order("A"), lock("B"))))
        assert [type(outcome) for outcome in outcomes] == [LeaseNeeded, Done]

    def test_what_comes_after_a_coupon_that_needs_a_lease_waits_for_it(self) -> None:
        it = world(of_book(lock_policy=LockPolicy.OPTIONAL), of_book(book_id=OTHER))
        commands = for_order("A"), for_order("X"), for_order("Y", order="o2")
        (outcomes,) = it.run(CommandGroup(commands))
        assert [type(outcome) for outcome in outcomes] == [LeaseNeeded, LeaseNeeded, Done]
        again = replace(commands[0], lease=PERMIT), commands[1]
        (decided,) = it.run(CommandGroup(again))
        assert [off_minor(done) for done in decided if isinstance(done, Done)] == [6_000, 4_000]

    def test_coupons_in_another_currency_leave_the_whole_discount(self) -> None:
        it = world(of_book(), of_book(book_id=OTHER, currency_code="USD"))
        it.does(for_order("X", amount=Money(10_000, "USD")))
        own = it.state.books[BOOK_ID]
        assert discount_on_order(for_order("A"), own, it.state) == eur(6_000)
