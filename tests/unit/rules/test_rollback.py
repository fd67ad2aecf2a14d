"""RollbackRedemption: once, whatever the state of book and code, and every count goes back."""

from __future__ import annotations

from datetime import timedelta

import pytest
from unit.rules.commands import (
    assign,
    call,
    disable,
    enable,
    eur,
    recorded,
    redeem,
    revoke,
    rollback,
)
from unit.rules.world import BOOK_ID, NOW, World, book

from coupon_service.errors import AlreadyRolledBack, CodeAlreadyRedeemed, RequestIdReused
from coupon_service.model import (
    Assignment,
    AssignmentState,
    Benefit,
    Book,
    BookState,
    BookStats,
    BookTotals,
    Call,
    CodeState,
    Done,
    EventType,
    UserCounts,
)


def everything_limited() -> Book:
    return book(
        max_redemptions=3,
        max_redemptions_per_code=3,
        max_redemptions_per_user=3,
        max_redemptions_per_user_per_code=3,
    )


class TestCounts:
    def test_every_count_goes_back(self) -> None:
        world = World(everything_limited())
        redeemed = world.does(redeem(amount=eur(2_000))).event
        world.does(rollback(redeemed))
        assert world.code().redemptions == 0
        assert world.assignment().redemptions == 0
        assert world.state.users == {(BOOK_ID, "ann"): UserCounts()}
        assert world.state.totals == {BOOK_ID: BookTotals()}
        assert world.stats == {BOOK_ID: BookStats(rollbacks=1)}

    def test_a_used_up_code_can_be_redeemed_again(self) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        assert type(world.refuses(redeem(user="bob"))) is CodeAlreadyRedeemed
        done = world.does(rollback(redeemed))
        assert done.code == world.code()
        assert world.code().state is CodeState.AVAILABLE
        world.does(redeem(user="bob"))

    def test_every_limit_has_room_again(self) -> None:
        world = World(everything_limited())
        redeemed = [world.does(redeem()).event for _ in range(3)]
        world.refuses(redeem())
        world.does(rollback(redeemed[1]))
        world.does(redeem())
        world.refuses(redeem())

    def test_a_code_that_is_assigned_is_assigned_again(self) -> None:
        world = World()
        world.does(assign())
        redeemed = world.does(redeem()).event
        assert world.assignment().state is AssignmentState.REDEEMED
        event = world.does(rollback(redeemed)).event
        assert (event.state_before, event.state_after) == (CodeState.REDEEMED, CodeState.ASSIGNED)
        assert world.assignment().state is AssignmentState.ACTIVE
        assert world.stats == {
            BOOK_ID: BookStats(available=-1, assigned=1, assignments=1, rollbacks=1)
        }

    def test_a_revoked_assignment_stays_revoked(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign())
        redeemed = world.does(redeem()).event
        world.does(revoke())
        world.does(rollback(redeemed))
        assert world.assignment().state is AssignmentState.REVOKED
        assert world.assignment().redemptions == 0

    def test_a_counted_bearer_stays_a_bearer(self) -> None:
        world = World(book(max_redemptions_per_user_per_code=1))
        world.does(rollback(world.does(redeem()).event))
        assert world.assignment().state is AssignmentState.UNASSIGNED
        assert world.assignment().redemptions == 0

    def test_an_assignment_at_a_lowered_limit_stays_redeemed(self) -> None:
        world = World(book(max_redemptions_per_code=9, max_redemptions_per_user_per_code=2))
        world.does(assign())
        redeemed = [world.does(redeem()).event for _ in range(2)]
        world.change_book(max_redemptions_per_user_per_code=1)
        world.does(rollback(redeemed[0]))
        assert world.assignment().state is AssignmentState.REDEEMED
        world.does(rollback(redeemed[1]))
        assert world.assignment().state is AssignmentState.ACTIVE

    def test_a_redemption_that_was_not_counted_is_not_taken_from_one_that_was(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        as_bearer = world.does(redeem()).event
        world.does(assign())
        counted = world.does(redeem()).event
        done = world.does(rollback(as_bearer))
        assert world.assignment().redemptions == done.event.user_code_redemptions == 1
        world.does(rollback(counted))
        assert world.assignment().redemptions == 0

    def test_a_user_without_assignment_gets_none(self) -> None:
        world = World()
        done = world.does(rollback(world.does(redeem()).event))
        assert done.assignment is None
        assert done.event.user_code_redemptions is None
        assert world.state.assignments == {}

    def test_what_a_lifted_limit_had_counted_does_not_matter_any_more(self) -> None:
        world = World(book(max_redemptions=5, max_redemptions_per_user=5))
        redeemed = world.does(redeem()).event
        world.change_book(max_redemptions=0, max_redemptions_per_user=0)
        world.does(rollback(redeemed))
        assert world.code().redemptions == 0


class TestStates:
    @pytest.mark.parametrize("state", [BookState.PAUSED, BookState.CLOSED])
    def test_it_works_in_a_book_that_is_not_active(self, state: BookState) -> None:
        world = World(book(end_time=NOW + timedelta(days=1)))
        redeemed = world.does(redeem()).event
        world.change_book(state=state)
        world.now += timedelta(days=2)
        world.does(rollback(redeemed))
        assert world.code().redemptions == 0

    def test_a_disabled_code_stays_disabled_and_is_available_when_enabled(self) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        world.does(disable())
        event = world.does(rollback(redeemed)).event
        assert (event.state_before, event.state_after) == (CodeState.DISABLED, CodeState.DISABLED)
        assert world.code().redemptions == 0
        world.does(enable())
        assert world.code().state is CodeState.AVAILABLE
        assert world.stats == {BOOK_ID: BookStats(rollbacks=1)}


class TestOnce:
    @pytest.mark.parametrize(
        "by", [call("r2"), call("r1", "another"), call()], ids=["request", "caller", "made up"]
    )
    def test_it_is_rolled_back_once(self, by: Call) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        world.does(rollback(redeemed, call("r1")))
        assert type(world.refuses(rollback(redeemed, by))) is AlreadyRolledBack
        assert world.code().redemptions == 0

    def test_its_own_repeat_is_answered_as_before(self) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        first = world.does(rollback(redeemed, call("r1")))
        world.does(redeem(user="bob"))
        again = world.does(rollback(redeemed, call("r1")))
        assert again.replayed
        assert again.event == first.event
        assert world.code().redemptions == 1

    def test_its_own_repeat_with_other_parameters_is_refused(self) -> None:
        world = World()
        redeemed = world.does(redeem()).event
        world.does(rollback(redeemed, call("r1")))
        error = world.refuses(rollback(redeemed, call("r1"), metadata='{"why": "returned"}'))
        assert type(error) is RequestIdReused

    def test_two_at_once_give_the_use_back_once(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(redeem())
        redeemed = world.does(redeem()).event
        first, second = world.batch(rollback(redeemed), rollback(redeemed))
        assert isinstance(first, Done)
        assert isinstance(second, AlreadyRolledBack)
        assert world.code().redemptions == 1

    def test_each_redemption_is_rolled_back_by_itself(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        first, second = (world.does(redeem()).event for _ in range(2))
        world.does(rollback(first))
        world.does(rollback(second))
        assert world.code().redemptions == 0


def test_the_ledger_says_what_was_undone() -> None:
    world = World(book(discount=Benefit("a cup"), max_redemptions_per_code=2))
    world.does(assign())
    redeemed = world.does(redeem(order="o1", amount=eur(2_000), metadata='{"till": 7}')).event
    world.now += timedelta(hours=1)
    command = rollback(redeemed, call("r2", "desk"), metadata='{"why": "returned"}')
    done = world.does(command)
    assert world.ledger[-1] == done.event
    assert done.event == recorded(
        command,
        EventType.ROLLED_BACK,
        event_time=world.now,
        order_id="o1",
        caller="desk",
        request_id="r2",
        state_before=CodeState.ASSIGNED,
        state_after=CodeState.ASSIGNED,
        order_amount_minor=2_000,
        currency_code="EUR",
        benefit="a cup",
        redemption_id=redeemed.event_id,
        code_redemptions=0,
        code_redemption_limit=2,
        user_code_redemptions=0,
        metadata='{"why": "returned"}',
    )
    assert isinstance(done.assignment, Assignment)


def test_the_discount_of_then_is_taken_back_whatever_it_is_now() -> None:
    world = World()
    redeemed = world.does(redeem(amount=eur(300))).event
    world.change_book(discount=Benefit("a cup"))
    assert world.does(rollback(redeemed)).event.discount_minor == 300
    assert world.stats[BOOK_ID].discount_minor == 0
