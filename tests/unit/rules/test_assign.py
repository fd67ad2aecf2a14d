"""AssignCode and RevokeAssignment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest
from unit.rules.commands import assign, call, disable, recorded, redeem, revoke
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, active, book

from coupon_service.errors import (
    AssignmentNotFound,
    BookExpired,
    BookNotActive,
    CodeAlreadyAssigned,
    CodeAlreadyRedeemed,
    CodeDisabled,
    CodeLimitExceeded,
    CouponServiceError,
    InvalidStateTransition,
    UserLimitExceeded,
)
from coupon_service.model import (
    Assignment,
    AssignmentState,
    BookState,
    BookStats,
    Code,
    CodeState,
    EventType,
    UserCounts,
)


class TestRefusals:
    @pytest.mark.parametrize("state", [BookState.DRAFT, BookState.PAUSED, BookState.CLOSED])
    def test_codes_of_a_book_that_is_not_active_are_not_assigned(self, state: BookState) -> None:
        error = World(book(state=state)).refuses(assign())
        assert type(error) is BookNotActive
        assert error.metadata == {"state": state.name}

    def test_codes_are_assigned_before_the_window_begins(self) -> None:
        World(book(start_time=NOW + MINUTE)).does(assign())

    def test_codes_are_assigned_until_the_window_ends(self) -> None:
        world = World(book(end_time=NOW), now=NOW)
        error = world.refuses(assign())
        assert type(error) is BookExpired
        assert error.metadata == {"end_time": NOW.isoformat()}
        world.now -= MOMENT
        world.does(assign())

    def test_a_disabled_code_is_not_assigned(self) -> None:
        world = World()
        world.does(disable())
        assert type(world.refuses(assign())) is CodeDisabled

    @pytest.mark.parametrize("redemptions", [0, 1])
    def test_a_code_is_assigned_to_a_user_once(self, redemptions: int) -> None:
        world = World()
        world.does(assign())
        for _ in range(redemptions):
            world.does(redeem())
        error = world.refuses(assign())
        assert type(error) is CodeAlreadyAssigned
        assert error.metadata == {}

    def test_a_single_use_code_that_was_redeemed_is_not_assigned(self) -> None:
        world = World()
        world.does(redeem())
        assert type(world.refuses(assign(user="bob"))) is CodeAlreadyRedeemed

    def test_a_used_up_code_is_not_assigned(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(redeem())
        world.does(redeem())
        error = world.refuses(assign(user="bob"))
        assert type(error) is CodeLimitExceeded
        assert error.metadata == {"limit": "2"}

    def test_a_code_is_assigned_to_as_many_users_as_it_has_redemptions(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign(user="ann"))
        world.does(assign(user="bob"))
        error = world.refuses(assign(user="cid"))
        assert type(error) is CodeAlreadyAssigned
        assert error.metadata == {"limit": "2"}
        world.does(revoke(user="ann"))
        world.does(assign(user="cid"))

    def test_a_code_without_limit_is_assigned_to_everybody(self) -> None:
        world = World(book(max_redemptions_per_code=0))
        for n in range(20):
            world.does(assign(user=f"user {n}"))
        assert world.code().assignments == 20

    def test_a_bearer_who_can_redeem_it_no_more_is_not_given_the_code(self) -> None:
        world = World(book(max_redemptions_per_code=9, max_redemptions_per_user_per_code=1))
        world.does(redeem())
        error = world.refuses(assign())
        assert type(error) is UserLimitExceeded
        assert error.metadata == {"limit_name": "max_redemptions_per_user_per_code", "limit": "1"}
        world.does(assign(user="bob"))

    def test_a_user_is_assigned_as_many_codes_as_the_book_allows(self) -> None:
        world = World(book(max_assignments_per_user=2))
        world.does(assign("A"))
        world.does(assign("B"))
        error = world.refuses(assign("C"))
        assert type(error) is UserLimitExceeded
        assert error.metadata == {"limit_name": "max_assignments_per_user", "limit": "2"}
        world.does(assign("C", user="bob"))

    def test_redeemed_ones_count_and_revoked_ones_do_not(self) -> None:
        world = World(book(max_assignments_per_user=2))
        world.does(assign("A"))
        world.does(assign("B"))
        world.does(redeem("A"))
        assert type(world.refuses(assign("C"))) is UserLimitExceeded
        world.does(revoke("B"))
        world.does(assign("C"))

    def test_the_most_specific_reason_comes_first(self) -> None:
        world = World(
            book(
                state=BookState.PAUSED,
                end_time=NOW,
                max_redemptions_per_code=2,
                max_redemptions_per_user_per_code=1,
                max_assignments_per_user=1,
            )
        )
        world.put(Code("A", BOOK_ID, CodeState.DISABLED, 2, 2))
        world.put(active(redemptions=1))
        world.put(UserCounts(assignments=1))
        reasons_and_remedies: list[tuple[type[CouponServiceError], Callable[[], None]]] = [
            (BookNotActive, lambda: world.change_book(state=BookState.ACTIVE)),
            (BookExpired, lambda: world.change_book(end_time=None)),
            (CodeDisabled, lambda: world.put(Code("A", BOOK_ID, CodeState.REDEEMED, 2, 2))),
            (
                CodeAlreadyAssigned,
                lambda: world.put(active(state=AssignmentState.REVOKED, redemptions=1)),
            ),
            (
                CodeLimitExceeded,
                lambda: world.put(Code("A", BOOK_ID, CodeState.ASSIGNED, 1, 2)),
            ),
            (
                CodeAlreadyAssigned,
                lambda: world.put(Code("A", BOOK_ID, CodeState.ASSIGNED, 1, 1)),
            ),
            (
                UserLimitExceeded,
                lambda: world.put(active(state=AssignmentState.REVOKED, redemptions=0)),
            ),
            (UserLimitExceeded, lambda: world.put(UserCounts())),
        ]
        for reason, remedy in reasons_and_remedies:
            assert type(world.refuses(assign())) is reason
            remedy()
        world.does(assign())


class TestEffects:
    def test_the_code_the_assignment_the_ledger_and_the_counters_follow(self) -> None:
        world = World(book(assigned_code_validity_s=3_600, max_assignments_per_user=2))
        command = assign(by=call("r1"), metadata='{"mail": true}')
        done = world.does(command)
        assert done.code == world.code() == Code("A", BOOK_ID, CodeState.ASSIGNED, 0, 1)
        assert done.assignment == world.assignment()
        assert world.assignment() == Assignment(
            code="A",
            user_id="ann",
            book_id=BOOK_ID,
            state=AssignmentState.ACTIVE,
            assign_time=NOW,
            expire_time=NOW + timedelta(hours=1),
            metadata='{"mail": true}',
        )
        assert world.state.users == {(BOOK_ID, "ann"): UserCounts(assignments=1)}
        assert world.stats == {BOOK_ID: BookStats(available=-1, assigned=1, assignments=1)}
        assert world.ledger == [done.event]
        assert done.event == recorded(
            command,
            EventType.ASSIGNED,
            state_before=CodeState.AVAILABLE,
            state_after=CodeState.ASSIGNED,
            user_code_redemptions=0,
            expire_time=NOW + timedelta(hours=1),
            metadata='{"mail": true}',
        )

    def test_without_a_validity_it_lasts_as_long_as_the_book(self) -> None:
        world = World()
        assert world.does(assign()).event.expire_time is None
        assert world.assignment().expire_time is None

    def test_a_second_user_changes_the_state_of_the_code_no_more(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign(user="ann"))
        world.does(assign(user="bob"))
        assert world.stats == {BOOK_ID: BookStats(available=-1, assigned=1, assignments=2)}

    def test_users_are_only_counted_where_the_book_limits_them(self) -> None:
        world = World()
        world.does(assign())
        assert world.state.users == {}

    def test_assigned_anew_it_keeps_its_count_and_fence_and_begins_anew(self) -> None:
        world = World(book(max_redemptions_per_code=5, assigned_code_validity_s=60))
        world.put(
            active(
                state=AssignmentState.REVOKED,
                redemptions=2,
                fence=7,
                assign_time=NOW - 2 * MINUTE,
                expire_time=NOW - MINUTE,
                metadata='{"old": 1}',
            )
        )
        event = world.does(assign()).event
        assert event.user_code_redemptions == 2
        assert world.assignment() == active(redemptions=2, fence=7, expire_time=NOW + MINUTE)

    def test_assigned_anew_it_has_a_later_time_whatever_the_clock_says(
        self,
    ) -> None:
        world = World(book(assigned_code_validity_s=60))
        for times in range(3):
            done = world.does(assign())
            world.does(revoke())
            world.now -= MINUTE / 2
            assert done.event.event_time == NOW + times * MOMENT
            assert done.event.expire_time == done.event.event_time + MINUTE
            assert done.assignment == active(
                assign_time=done.event.event_time, expire_time=done.event.expire_time
            )

    def test_a_bearer_who_was_counted_becomes_an_assigned_user(self) -> None:
        world = World(book(max_redemptions_per_code=5, max_redemptions_per_user_per_code=5))
        world.does(redeem())
        world.does(assign())
        assert world.assignment() == active(redemptions=1)


class TestRevoke:
    def test_the_code_is_available_again(self) -> None:
        world = World(book(max_assignments_per_user=1))
        world.does(assign())
        command = revoke(by=call("r2"))
        done = world.does(command)
        assert done.code == world.code() == Code("A", BOOK_ID, CodeState.AVAILABLE, 0, 0)
        assert done.assignment == world.assignment() == active(state=AssignmentState.REVOKED)
        assert world.state.users == {(BOOK_ID, "ann"): UserCounts()}
        assert world.stats == {BOOK_ID: BookStats()}
        assert world.ledger[-1] == done.event
        assert done.event == recorded(
            command,
            EventType.REVOKED,
            request_id="r2",
            state_before=CodeState.ASSIGNED,
            state_after=CodeState.AVAILABLE,
            user_code_redemptions=0,
        )

    def test_a_code_that_another_user_has_stays_assigned(self) -> None:
        world = World(book(max_redemptions_per_code=2))
        world.does(assign(user="ann"))
        world.does(assign(user="bob"))
        world.does(revoke(user="ann"))
        assert world.code() == Code("A", BOOK_ID, CodeState.ASSIGNED, 0, 1)

    def test_a_code_that_others_used_up_stays_redeemed(self) -> None:
        world = World()
        world.does(assign(user="ann"))
        world.does(redeem(user="bob"))
        event = world.does(revoke(user="ann")).event
        assert (event.state_before, event.state_after) == (CodeState.REDEEMED, CodeState.REDEEMED)

    def test_a_disabled_code_stays_disabled(self) -> None:
        world = World()
        world.does(assign())
        world.does(disable())
        world.does(revoke())
        assert world.code() == Code("A", BOOK_ID, CodeState.DISABLED, 0, 0)

    @pytest.mark.parametrize("state", BookState)
    def test_it_works_whatever_the_state_of_the_book(self, state: BookState) -> None:
        world = World()
        world.does(assign())
        world.change_book(state=state, end_time=NOW)
        world.does(revoke())

    def test_what_was_never_assigned_cannot_be_revoked(self) -> None:
        world = World(book(max_redemptions_per_user_per_code=1))
        assert type(world.refuses(revoke())) is AssignmentNotFound
        world.does(redeem())
        assert type(world.refuses(revoke())) is AssignmentNotFound

    @pytest.mark.parametrize("state", [AssignmentState.REDEEMED, AssignmentState.REVOKED])
    def test_what_is_over_cannot_be_revoked(self, state: AssignmentState) -> None:
        world = World()
        world.put(active(state=state))
        error = world.refuses(revoke())
        assert type(error) is InvalidStateTransition
        assert error.metadata == {"state": state.name}

    def test_it_can_be_assigned_and_revoked_again(self) -> None:
        world = World(book(max_assignments_per_user=1))
        for _ in range(3):
            world.does(assign())
            world.does(revoke())
        assert world.stats == {BOOK_ID: BookStats()}
