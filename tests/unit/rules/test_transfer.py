"""TransferAssignment."""

from __future__ import annotations

from typing import Any

import pytest
from unit.rules.commands import (
    assign,
    call,
    disable,
    lock,
    recorded,
    redeem,
    rollback,
    token,
    transfer,
    unlock,
)
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, World, active, book, lockable

from coupon_service.errors import (
    AssignmentNotActive,
    AssignmentNotFound,
    BookExpired,
    BookNotActive,
    CodeAlreadyAssigned,
    CodeDisabled,
    CodeExpired,
    CodeLimitExceeded,
    CodeLocked,
    CodeNotAssignedToUser,
    CouponServiceError,
    LockExpired,
    LockTokenMismatch,
    RequestIdReused,
    UserLimitExceeded,
)
from coupon_service.model import (
    AssignmentPolicy,
    AssignmentState,
    BookState,
    BookStats,
    Code,
    CodeState,
    EventType,
    LockPolicy,
    LockState,
    UserCounts,
    receipt_id,
)

REVOKED = AssignmentState.REVOKED


def given(**changes: Any) -> World:
    """ann has the code A of a book."""
    world = World(book(**changes))
    world.does(assign())
    return world


def locked() -> tuple[World, Any]:
    """ann has the code A, and a lock on it, for a minute."""
    world = lockable()
    world.does(assign())
    return world, world.does(lock()).event


class TestTransfer:
    def test_the_receiver_has_the_code_until_the_giver_would_have_had_it(self) -> None:
        world = given(assigned_code_validity_s=60, max_assignments_per_user=1)
        world.now += MINUTE / 2
        command = transfer(by=call("r2"), metadata='{"gift": 1}')
        done = world.does(command)
        received = active("bob", assign_time=world.now, expire_time=NOW + MINUTE)
        assert done.assignment == world.assignment("bob")
        assert world.assignment("bob") == active(
            "bob", assign_time=world.now, expire_time=NOW + MINUTE, metadata='{"gift": 1}'
        )
        assert world.assignment("ann") == active(state=REVOKED, expire_time=NOW + MINUTE)
        assert world.code() == Code("A", BOOK_ID, CodeState.ASSIGNED, 0, 1)
        assert world.state.users == {
            (BOOK_ID, "ann"): UserCounts(),
            (BOOK_ID, "bob"): UserCounts(assignments=1),
        }
        assert world.stats == {BOOK_ID: BookStats(available=-1, assigned=1, assignments=1)}
        assert received.expire_time is not None

    def test_the_ledger_tells_of_both_users(self) -> None:
        world = given(assigned_code_validity_s=60)
        command = transfer(by=call("r2"))
        done = world.does(command)
        same = {"request_id": "r2", "user_code_redemptions": 0}
        same |= {"state_before": CodeState.ASSIGNED, "state_after": CodeState.ASSIGNED}
        event = recorded(command, EventType.ASSIGNMENT_TRANSFERRED, other_user_id="bob", **same)
        receipt = recorded(
            command,
            EventType.ASSIGNED,
            event_id=receipt_id(command.event_id),
            user_id="bob",
            other_user_id="ann",
            expire_time=NOW + MINUTE,
            **same,
        )
        assert world.ledger[-2:] == [event, receipt]
        assert done.event == event

    def test_counts_stay_with_whoever_redeemed(self) -> None:
        world = given(max_redemptions_per_code=5, max_redemptions_per_user=2)
        first = world.does(redeem()).event
        world.does(transfer())
        world.does(redeem(user="bob"))
        assert (world.assignment("ann").redemptions, world.assignment("bob").redemptions) == (1, 1)
        world.does(rollback(first))
        assert world.assignment("ann") == active(state=REVOKED)
        assert world.assignment("bob").redemptions == 1
        assert world.state.users == {
            (BOOK_ID, "ann"): UserCounts(),
            (BOOK_ID, "bob"): UserCounts(redemptions=1, assignments=1),
        }

    def test_only_the_receiver_can_redeem(self) -> None:
        world = given(assignment_policy=AssignmentPolicy.REQUIRED)
        world.does(transfer())
        assert type(world.refuses(redeem())) is CodeNotAssignedToUser
        world.does(redeem(user="bob"))

    def test_it_can_go_on_and_come_back(self) -> None:
        world = given(max_assignments_per_user=1)
        world.does(transfer())
        world.does(transfer(giver="bob", receiver="cat"))
        world.does(transfer(giver="cat", receiver="ann"))
        assert world.assignment("ann") == active(assign_time=NOW + MOMENT)
        assert world.state.users[(BOOK_ID, "ann")] == UserCounts(assignments=1)
        assert world.code() == Code("A", BOOK_ID, CodeState.ASSIGNED, 0, 1)

    @pytest.mark.parametrize(
        ("world", "error"),
        [
            (World(), AssignmentNotFound),
            (given(state=BookState.ACTIVE, end_time=NOW + MINUTE / 2), BookExpired),
            (given(assigned_code_validity_s=30), CodeExpired),
        ],
    )
    def test_what_the_giver_cannot_use_cannot_be_given(
        self, world: World, error: type[CouponServiceError]
    ) -> None:
        world.now += MINUTE / 2
        assert type(world.refuses(transfer())) is error

    @pytest.mark.parametrize("state", [AssignmentState.REDEEMED, REVOKED])
    def test_what_is_over_cannot_be_given(self, state: AssignmentState) -> None:
        world = World()
        world.put(active(state=state))
        error = world.refuses(transfer())
        assert type(error) is AssignmentNotActive
        assert error.metadata == {"state": state.name}

    def test_a_bearer_has_nothing_to_give(self) -> None:
        world = World(book(max_redemptions_per_code=5, max_redemptions_per_user_per_code=5))
        world.does(redeem())
        assert type(world.refuses(transfer())) is AssignmentNotFound

    def test_a_code_that_is_disabled_or_of_a_paused_book_stays(self) -> None:
        world = given()
        world.does(disable())
        assert type(world.refuses(transfer())) is CodeDisabled
        world.change_book(state=BookState.PAUSED)
        assert type(world.refuses(transfer())) is BookNotActive

    def test_a_code_that_others_have_used_up_stays(self) -> None:
        world = given(max_redemptions_per_code=2)
        for user in ("cat", "dan"):
            world.does(redeem(user=user))
        assert type(world.refuses(transfer())) is CodeLimitExceeded

    def test_the_receiver_passes_limits_of_their_own(self) -> None:
        world = given(
            max_redemptions_per_code=5,
            max_assignments_per_user=1,
            max_redemptions_per_user_per_code=1,
        )
        world.does(assign("B", "bob"))
        error = world.refuses(transfer())
        assert type(error) is UserLimitExceeded
        assert error.metadata["limit_name"] == "max_assignments_per_user"
        world.does(redeem(user="cat"))
        error = world.refuses(transfer(receiver="cat"))
        assert type(error) is UserLimitExceeded
        assert error.metadata["limit_name"] == "max_redemptions_per_user_per_code"

    def test_who_has_the_code_already_does_not_get_it_twice(self) -> None:
        world = given(max_redemptions_per_code=2)
        world.does(assign(user="bob"))
        assert type(world.refuses(transfer())) is CodeAlreadyAssigned
        assert world.does(transfer(receiver="cat")).code == world.code()


class TestLockOfTheGiver:
    def test_it_is_in_the_way(self) -> None:
        world, _ = locked()
        world.now += MINUTE / 4
        error = world.refuses(transfer())
        assert type(error) is CodeLocked
        assert error.metadata == {"retry_after_ms": "45000"}
        world.now += MINUTE
        world.does(transfer())

    def test_with_its_token_it_ends(self) -> None:
        world, held = locked()
        done = world.does(transfer(lock=token(held)))
        assert done.lock is not None
        assert (done.lock.lock_id, done.lock.state) == (held.event_id, LockState.RELEASED)
        types = [it.type for it in world.ledger[-3:]]
        assert types == [
            EventType.UNLOCKED,
            EventType.ASSIGNMENT_TRANSFERRED,
            EventType.ASSIGNED,
        ]
        # By the ledger alone, whatever Redis says.
        error = world.refuses(redeem(lock=token(held)))
        assert type(error) is LockExpired
        assert world.does(unlock(held)).replayed

    def test_another_token_does_not_end_it(self) -> None:
        world, held = locked()
        world.does(assign("B"))
        other = world.does(lock("B")).event
        assert type(world.refuses(transfer(lock=token(other)))) is LockTokenMismatch
        world.does(unlock(held))
        again = world.does(lock()).event
        assert type(world.refuses(transfer(lock=token(held)))) is CodeLocked
        world.does(transfer(lock=token(again)))

    def test_the_token_of_another_user_is_refused(self) -> None:
        world = World(book(lock_policy=LockPolicy.OPTIONAL, max_redemptions_per_code=5))
        world.does(assign())
        other = world.does(lock(user="bob")).event
        assert type(world.refuses(transfer(lock=token(other)))) is LockTokenMismatch
        world.does(transfer())

    def test_a_lock_that_is_over_is_in_nobodys_way(self) -> None:
        world, held = locked()
        world.does(unlock(held))
        assert world.does(transfer(lock=token(held))).lock is None


class TestRepeats:
    def test_the_answer_is_that_of_then(self) -> None:
        world = given(max_redemptions_per_code=5)
        command = transfer(by=call("r2"))
        first = world.does(command)
        world.does(redeem(user="bob"))
        again = world.does(command)
        assert again.replayed
        assert (again.event, again.assignment) == (first.event, first.assignment)

    def test_it_is_told_that_the_receiver_has_it_no_more(self) -> None:
        world = given()
        command = transfer(by=call("r2"))
        world.does(command)
        world.does(transfer(giver="bob", receiver="cat"))
        error = world.refuses(command)
        assert type(error) is AssignmentNotActive
        assert error.metadata == {"state": "REVOKED"}

    def test_the_giver_who_was_assigned_it_is_told_that_it_is_gone(self) -> None:
        world = World()
        made = assign(by=call("r1"))
        world.does(made)
        world.does(transfer())
        assert type(world.refuses(made)) is AssignmentNotActive

    def test_other_users_under_the_same_id_are_refused(self) -> None:
        world = given()
        world.does(transfer(by=call("r2")))
        assert type(world.refuses(transfer(receiver="cat", by=call("r2")))) is RequestIdReused
