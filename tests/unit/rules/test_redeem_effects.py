"""What a redemption leaves behind: the ledger row, the counters, the assignment to the user."""

from __future__ import annotations

from typing import Any

import pytest
from unit.rules.commands import assign, call, eur, recorded, redeem, revoke
from unit.rules.world import BOOK_ID, World, book

from coupon_service.model import (
    AssignmentState,
    BookStats,
    BookTotals,
    CodeState,
    EventType,
    PercentOff,
    UserCounts,
)


class TestEffects:
    def test_the_ledger_has_a_row_with_everything(self) -> None:
        world = World(
            book(
                discount=PercentOff(1_500, 0),
                max_redemptions_per_code=5,
                max_redemptions_per_user_per_code=3,
            )
        )
        by = call("r1")
        command = redeem(by=by, order="o1", amount=eur(1_999), metadata='{"till": 7}')
        done = world.does(command)
        assert world.ledger == [done.event]
        assert done.event == recorded(
            command,
            EventType.REDEEMED,
            order_id="o1",
            state_before=CodeState.AVAILABLE,
            state_after=CodeState.AVAILABLE,
            order_amount_minor=1_999,
            discount_minor=299,
            currency_code="EUR",
            code_redemptions=1,
            code_redemption_limit=5,
            user_code_redemptions=1,
            metadata='{"till": 7}',
            book_version=1,
        )

    def test_what_was_not_given_is_not_recorded(self) -> None:
        event = World(book(discount=PercentOff(1_500, 0))).does(redeem()).event
        assert event.order_id is None
        assert event.order_amount_minor is None
        assert event.discount_minor is None
        assert event.currency_code == "EUR"
        assert event.user_code_redemptions is None
        assert event.lock_id is None
        assert event.metadata is None

    def test_the_counters_of_the_book_follow(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(redeem(amount=eur(300)))
        assert world.stats == {BOOK_ID: BookStats(redemptions=1, discount_minor=300)}
        world.does(redeem(amount=eur(2_000)))
        assert world.stats == {
            BOOK_ID: BookStats(available=-1, redeemed=1, redemptions=2, discount_minor=800)
        }

    def test_a_used_up_code_is_redeemed(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign())
        event = world.does(redeem()).event
        assert (event.state_before, event.state_after) == (CodeState.ASSIGNED, CodeState.ASSIGNED)
        done = world.does(redeem())
        assert done.event.state_after is CodeState.REDEEMED
        assert done.code == world.code()
        assert world.code().state is CodeState.REDEEMED
        assert (world.code().redemptions, world.code().assignments) == (2, 1)

    @pytest.mark.parametrize(
        ("limits", "counted"),
        [
            ({}, False),
            ({"max_redemptions": 5, "max_redemptions_per_user_per_code": 5}, False),
            ({"max_redemptions_per_user": 5}, True),
            ({"max_assignments_per_user": 5}, True),
        ],
    )
    def test_users_are_counted_where_the_book_limits_them(
        self, limits: dict[str, Any], counted: bool
    ) -> None:
        world = World(book(**limits))
        world.does(redeem())
        expected = {(BOOK_ID, "ann"): UserCounts(redemptions=1)} if counted else {}
        assert world.state.users == expected

    @pytest.mark.parametrize(("limit", "total"), [(0, 0), (5, 1)])
    def test_the_total_is_counted_where_the_book_limits_it(self, limit: int, total: int) -> None:
        world = World(book(max_redemptions=limit))
        world.does(redeem())
        assert world.state.totals == {BOOK_ID: BookTotals(total)}


class TestLink:
    def test_a_bearer_leaves_no_assignment_where_nothing_is_limited(self) -> None:
        world = World()
        done = world.does(redeem())
        assert done.assignment is None
        assert world.state.assignments == {}

    def test_a_bearer_is_counted_where_a_limit_needs_it(self) -> None:
        world = World(book(max_redemptions_per_code=0, max_redemptions_per_user_per_code=5))
        world.does(redeem())
        done = world.does(redeem())
        assert done.assignment == world.assignment()
        assert world.assignment().state is AssignmentState.UNASSIGNED
        assert world.assignment().redemptions == 2
        assert world.assignment().assign_time is None

    def test_an_assignment_counts(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        world.does(assign())
        done = world.does(redeem())
        assert done.event.user_code_redemptions == 1
        assert world.assignment().redemptions == 1
        assert world.assignment().state is AssignmentState.ACTIVE

    @pytest.mark.parametrize(
        "limits",
        [
            {"max_redemptions_per_code": 2},
            {"max_redemptions_per_code": 0, "max_redemptions_per_user_per_code": 2},
            {"max_redemptions_per_code": 9, "max_redemptions_per_user_per_code": 2},
            {"max_redemptions_per_code": 2, "max_redemptions_per_user_per_code": 9},
        ],
    )
    def test_an_assignment_is_redeemed_when_its_user_can_redeem_no_more(
        self, limits: dict[str, Any]
    ) -> None:
        world = World(book(**limits))
        world.does(assign())
        world.does(redeem())
        assert world.assignment().state is AssignmentState.ACTIVE
        world.does(redeem())
        assert world.assignment().state is AssignmentState.REDEEMED

    def test_an_assignment_of_a_code_that_others_used_up_stays_active(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign(user="ann"))
        world.does(assign(user="bob"))
        world.does(redeem(user="ann"))
        world.does(redeem(user="bob"))
        assert world.code().state is CodeState.REDEEMED
        assert world.assignment("ann").state is AssignmentState.ACTIVE
        assert world.assignment("bob").state is AssignmentState.ACTIVE

    def test_a_revoked_bearer_stays_revoked(self) -> None:
        world = World()
        world.does(assign())
        world.does(revoke())
        world.does(redeem())
        assert world.assignment().state is AssignmentState.REVOKED
        assert world.assignment().redemptions == 1
