"""RedeemCode: every reason for a refusal that does not come from a lock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from uuid import UUID

import pytest
from unit.rules.commands import assign, call, disable, eur, redeem, rollback, user_call
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, active, book

from coupon_service.errors import (
    BookExpired,
    BookLimitExceeded,
    BookNotActive,
    BookNotStarted,
    BudgetExceeded,
    CodeAlreadyRedeemed,
    CodeDisabled,
    CodeExpired,
    CodeLimitExceeded,
    CodeNotAssignedToUser,
    CouponServiceError,
    CurrencyMismatch,
    OrderAlreadyRedeemed,
    OrderBelowMinimum,
    UserLimitExceeded,
)
from coupon_service.model import (
    AmountOff,
    AssignmentPolicy,
    AssignmentState,
    Benefit,
    BookState,
    BookTotals,
    Code,
    CodeState,
    Done,
    Money,
    PercentOff,
    Redeem,
    Tier,
    TieredDiscount,
    UserCounts,
)

REQUIRED = AssignmentPolicy.REQUIRED


class TestBook:
    @pytest.mark.parametrize("state", [BookState.DRAFT, BookState.PAUSED, BookState.CLOSED])
    def test_a_book_that_is_not_active_is_not_redeemed(self, state: BookState) -> None:
        error = World(book(state=state)).refuses(redeem())
        assert type(error) is BookNotActive
        assert error.metadata == {"state": state.name}

    def test_the_window_begins_at_its_start(self) -> None:
        world = World(book(start_time=NOW), now=NOW - MOMENT)
        error = world.refuses(redeem())
        assert type(error) is BookNotStarted
        assert error.metadata == {"start_time": NOW.isoformat()}
        world.now = NOW
        world.does(redeem())

    def test_the_window_ends_before_its_end(self) -> None:
        world = World(book(end_time=NOW), now=NOW)
        error = world.refuses(redeem())
        assert type(error) is BookExpired
        assert error.metadata == {"end_time": NOW.isoformat()}
        world.now = NOW - MOMENT
        world.does(redeem())

    def test_a_book_without_window_is_always_open(self) -> None:
        for year in (2000, 9999):
            World(book(), now=NOW.replace(year=year)).does(redeem())


class TestLimits:
    def test_a_single_use_code_is_redeemed_once(self) -> None:
        world = World()
        world.does(redeem())
        error = world.refuses(redeem(user="bob"))
        assert type(error) is CodeAlreadyRedeemed
        assert error.metadata == {}

    def test_a_code_is_redeemed_as_often_as_the_book_allows(self) -> None:
        world = World(book(max_redemptions_per_code=3))
        for user in ("ann", "ann", "bob"):
            world.does(redeem(user=user))
        error = world.refuses(redeem(user="cid"))
        assert type(error) is CodeLimitExceeded
        assert error.metadata == {"limit": "3"}

    def test_a_code_without_limit_is_redeemed_for_ever(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        for _ in range(20):
            world.does(redeem())
        assert world.code().redemptions == 20
        assert world.code().state is CodeState.AVAILABLE

    def test_a_code_without_limit_is_redeemed_as_often_as_can_be_counted(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        world.put(Code("A", BOOK_ID, CodeState.AVAILABLE, 2**31 - 2, 0))
        world.does(redeem())
        error = world.refuses(redeem())
        assert type(error) is CodeLimitExceeded
        assert error.metadata == {"limit": str(2**31 - 1)}

    def test_a_user_redeems_a_code_as_often_as_the_book_allows(self) -> None:
        world = World(book(max_redemptions_per_code=9, max_redemptions_per_user_per_code=2))
        world.does(redeem())
        world.does(redeem())
        error = world.refuses(redeem())
        assert type(error) is UserLimitExceeded
        assert error.metadata == {"limit_name": "max_redemptions_per_user_per_code", "limit": "2"}
        world.does(redeem(user="bob"))
        world.does(redeem("B"))

    def test_a_user_redeems_a_book_as_often_as_it_allows(self) -> None:
        world = World(book(max_redemptions_per_user=2))
        world.does(redeem("A"))
        world.does(redeem("B"))
        error = world.refuses(redeem("C"))
        assert type(error) is UserLimitExceeded
        assert error.metadata == {"limit_name": "max_redemptions_per_user", "limit": "2"}
        world.does(redeem("C", user="bob"))

    def test_a_book_is_redeemed_as_often_as_it_allows(self) -> None:
        world = World(book(max_redemptions=2))
        world.does(redeem("A", user="ann"))
        world.does(redeem("B", user="bob"))
        error = world.refuses(redeem("C", user="cid"))
        assert type(error) is BookLimitExceeded
        assert error.metadata == {"limit": "2"}

    def test_a_limit_that_was_raised_allows_more(self) -> None:
        world = World(book(max_redemptions=1, max_redemptions_per_user=1))
        world.does(redeem("A"))
        world.change_book(max_redemptions=2, max_redemptions_per_user=2)
        world.does(redeem("B"))

    def test_a_limit_below_what_was_redeemed_refuses(self) -> None:
        world = World(book(max_redemptions=3))
        world.does(redeem("A"))
        world.does(redeem("B"))
        world.change_book(max_redemptions=1)
        assert type(world.refuses(redeem("C"))) is BookLimitExceeded


class TestCode:
    def test_a_disabled_code_is_not_redeemed(self) -> None:
        world = World()
        world.does(disable())
        assert type(world.refuses(redeem())) is CodeDisabled

    @pytest.mark.parametrize("state", [AssignmentState.REVOKED, AssignmentState.UNASSIGNED, None])
    def test_where_it_is_required_only_an_assigned_user_redeems(
        self, state: AssignmentState | None
    ) -> None:
        world = World(book(assignment_policy=REQUIRED, max_redemptions_per_code=5))
        if state is not None:
            world.put(active(state=state))
        assert type(world.refuses(redeem())) is CodeNotAssignedToUser
        world.does(assign())
        world.does(redeem())

    @pytest.mark.parametrize("state", [AssignmentState.ACTIVE, AssignmentState.REDEEMED])
    def test_an_assigned_user_redeems_while_uses_are_left(self, state: AssignmentState) -> None:
        # REDEEMED with uses left: the limit was raised since then.
        world = World(book(assignment_policy=REQUIRED, max_redemptions_per_user_per_code=2))
        world.put(active(state=state, redemptions=1))
        world.does(redeem())

    @pytest.mark.parametrize("state", [AssignmentState.REVOKED, None])
    def test_whoever_has_a_bearer_code_redeems_it(self, state: AssignmentState | None) -> None:
        world = World()
        if state is not None:
            world.put(active(state=state, expire_time=NOW - MINUTE))
        world.does(redeem())

    @pytest.mark.parametrize("policy", AssignmentPolicy)
    def test_an_assignment_is_valid_until_it_expires(self, policy: AssignmentPolicy) -> None:
        world = World(book(assignment_policy=policy, assigned_code_validity_s=60))
        world.does(assign())
        world.now = NOW + MINUTE
        error = world.refuses(redeem())
        assert type(error) is CodeExpired
        assert error.metadata == {"expire_time": (NOW + MINUTE).isoformat()}
        world.now -= MOMENT
        world.does(redeem())

    def test_what_expired_for_one_user_is_good_for_another_bearer(self) -> None:
        world = World(book(assigned_code_validity_s=60))
        world.does(assign())
        world.now = NOW + MINUTE
        world.does(redeem(user="bob"))


CALLERS: dict[str, Callable[[], Redeem]] = {
    "ann": lambda: redeem(user="ann", by=user_call("ann"), order="o1"),
    "bob": lambda: redeem(user="bob", by=user_call("bob"), order="o1"),
    "a service for ann": lambda: redeem(user="ann", order="o1"),
    "a service for bob": lambda: redeem(user="bob", order="o1"),
    "a service called ann for ann": lambda: redeem(user="ann", by=call("", "ann"), order="o1"),
}


class TestOrder:
    @pytest.mark.parametrize("amount", [None, eur(999)])
    def test_a_minimum_has_to_be_met(self, amount: Money | None) -> None:
        world = World(book(min_order_amount_minor=1_000))
        error = world.refuses(redeem(amount=amount))
        assert type(error) is OrderBelowMinimum
        assert error.metadata == {"minimum_minor": "1000", "currency_code": "EUR"}
        world.does(redeem(amount=eur(1_000)))

    @pytest.mark.parametrize(("minimum", "least"), [(0, 5_000), (4_999, 5_000), (5_001, 5_001)])
    def test_an_order_below_the_first_tier_uses_no_code_up(self, minimum: int, least: int) -> None:
        tiers = TieredDiscount((Tier(5_000, PercentOff(1_000, 0)), Tier(9_000, AmountOff(1))))
        world = World(book(discount=tiers, min_order_amount_minor=minimum))
        for amount in (None, eur(0), eur(least - 1)):
            error = world.refuses(redeem(amount=amount))
            assert type(error) is OrderBelowMinimum
            assert error.metadata == {"minimum_minor": str(least), "currency_code": "EUR"}
        event = world.does(redeem(amount=eur(least))).event
        assert event.discount_minor == least // 10

    def test_an_order_is_in_the_currency_of_the_book(self) -> None:
        world = World()
        error = world.refuses(redeem(amount=Money(1_000, "USD")))
        assert type(error) is CurrencyMismatch
        assert error.metadata == {"currency_code": "EUR"}

    def test_a_benefit_without_currency_goes_with_any_order(self) -> None:
        world = World(book(discount=Benefit("a cup"), currency_code=""))
        event = world.does(redeem(amount=Money(1_000, "USD"))).event
        assert (event.benefit, event.discount_minor) == ("a cup", None)
        assert (event.order_amount_minor, event.currency_code) == (1_000, "USD")

    def test_a_code_is_redeemed_once_for_an_order(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        redeemed = world.does(redeem(order="o1")).event
        error = world.refuses(redeem(order="o1", user="bob"))
        assert type(error) is OrderAlreadyRedeemed
        assert error.metadata == {"redemption_id": str(redeemed.event_id)}
        world.does(redeem(order="o2"))
        world.does(redeem("B", order="o1"))

    def test_that_holds_years_later(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        world.does(redeem(order="o1"))
        world.now += timedelta(days=3_650)
        assert type(world.refuses(redeem(order="o1"))) is OrderAlreadyRedeemed

    @pytest.mark.parametrize("first", CALLERS)
    @pytest.mark.parametrize("second", CALLERS)
    @pytest.mark.parametrize("at_once", [False, True])
    def test_orders_of_end_users_are_their_own(
        self, first: str, second: str, *, at_once: bool
    ) -> None:
        world = World(book(max_redemptions_per_code=3))
        commands = [CALLERS[first](), CALLERS[second]()]
        if at_once:
            outcomes = world.batch(*commands)
        else:
            outcomes = [it for command in commands for it in world.batch(command)]
        same_user = commands[0].user_id == commands[1].user_id
        both_services = first.startswith("a service") and second.startswith("a service")
        taken = isinstance(outcomes[1], OrderAlreadyRedeemed)
        assert taken is (same_user or both_services)
        assert taken is not isinstance(outcomes[1], Done)
        world.does(rollback(world.ledger[0]))
        assert isinstance(world.batch(CALLERS[second]())[0], Done) is taken

    def test_without_an_order_it_is_redeemed_as_often_as_allowed(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(redeem())
        world.does(redeem())

    def test_an_order_is_free_again_after_a_roll_back(self) -> None:
        world = World()
        world.does(rollback(world.does(redeem(order="o1")).event))
        again = world.does(redeem(order="o1")).event
        error = world.refuses(redeem(order="o1"))
        assert type(error) is OrderAlreadyRedeemed
        assert error.metadata == {"redemption_id": str(again.event_id)}

    def test_of_a_used_up_code_the_order_is_the_more_specific_reason(self) -> None:
        world = World()
        world.does(redeem(order="o1"))
        assert type(world.refuses(redeem(order="o1"))) is OrderAlreadyRedeemed


ALL_AT_ONCE: list[type[CouponServiceError]] = [
    BookNotActive,
    BookExpired,
    BookNotStarted,
    CodeDisabled,
    OrderAlreadyRedeemed,
    CodeLimitExceeded,
    CodeNotAssignedToUser,
    UserLimitExceeded,
    UserLimitExceeded,
    BookLimitExceeded,
    BudgetExceeded,
    CurrencyMismatch,
    OrderBelowMinimum,
]


def test_the_most_specific_reason_comes_first() -> None:
    """Of everything that speaks against a redemption the service answers with the first reason."""
    world = World(
        book(
            state=BookState.PAUSED,
            start_time=NOW + MINUTE,
            end_time=NOW,
            assignment_policy=REQUIRED,
            max_redemptions=1,
            max_redemptions_per_code=2,
            max_redemptions_per_user=1,
            max_redemptions_per_user_per_code=1,
            min_order_amount_minor=1_000,
            budget_minor=499,
        )
    )
    world.put(active(state=AssignmentState.REVOKED, redemptions=1))
    world.put(UserCounts(redemptions=1))
    world.put(Code("A", BOOK_ID, CodeState.DISABLED, 2, 0))
    world.state.totals[BOOK_ID] = BookTotals(1)
    world.state.orders[(BOOK_ID, "A"), "o1", "ann"] = UUID(int=7)
    command = redeem(order="o1", amount=Money(999, "USD"))

    remedies = [
        lambda: world.change_book(state=BookState.ACTIVE),
        lambda: world.change_book(end_time=None),
        lambda: world.change_book(start_time=None),
        lambda: world.put(Code("A", BOOK_ID, CodeState.AVAILABLE, 2, 0)),
        world.state.orders.clear,
        lambda: world.change_book(max_redemptions_per_code=9),
        lambda: world.put(active(redemptions=1)),
        lambda: world.change_book(max_redemptions_per_user_per_code=2),
        lambda: world.change_book(max_redemptions_per_user=2),
        lambda: world.change_book(max_redemptions=2),
        lambda: world.change_book(budget_minor=500),
        lambda: world.change_book(currency_code="USD"),
        lambda: world.change_book(min_order_amount_minor=999),
    ]
    for reason, remedy in zip(ALL_AT_ONCE, remedies, strict=True):
        assert type(world.refuses(command)) is reason
        remedy()
    world.does(command)
