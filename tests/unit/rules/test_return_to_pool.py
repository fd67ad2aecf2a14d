"""Codes that their users let expire go back to the pool."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from unit.rules.commands import (
    assign,
    assign_random,
    disable,
    lock,
    recorded,
    redeem,
    return_to_pool,
    revoke,
    rollback,
    token,
    unlock,
)
from unit.rules.world import BOOK_ID, MINUTE, MOMENT, NOW, PERMIT, World, active, book

from coupon_service.errors import (
    CodeLocked,
    CodeNotAssignedToUser,
    InvalidArgument,
    InvalidStateTransition,
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
    UserCounts,
)
from coupon_service.rules import book_updates

REVOKED = AssignmentState.REVOKED
END = NOW + MINUTE
LOCK_LIFE = timedelta(minutes=15)


def given(**changes: Any) -> World:
    """ann has the code A for a minute, in a book whose codes go back to the pool."""
    usual: dict[str, Any] = {
        "assignment_policy": AssignmentPolicy.REQUIRED,
        "lock_policy": LockPolicy.OPTIONAL,
        "return_to_pool": True,
        "assigned_code_validity_s": 60,
    }
    world = World(book(**usual | changes))
    world.does(assign())
    return world


def due(world: World) -> World:
    """The same, when the validity of it and every lock that was taken in time are over."""
    world.now = END + LOCK_LIFE
    return world


class TestReturn:
    def test_the_code_is_available_to_others(self) -> None:
        world = due(given(max_assignments_per_user=1))
        command = return_to_pool(world)
        done = world.does(command)
        assert done.code == world.code() == Code("A", BOOK_ID, CodeState.AVAILABLE, 0, 0)
        assert world.assignment() == active(state=REVOKED, expire_time=END)
        assert world.state.users == {(BOOK_ID, "ann"): UserCounts()}
        assert world.stats == {BOOK_ID: BookStats()}
        assert done.event == recorded(
            command,
            EventType.ASSIGNMENT_EXPIRED,
            event_time=world.now,
            caller="sweeper",
            peer="",
            user_agent="",
            request_id="assignment-expired",
            state_before=CodeState.ASSIGNED,
            state_after=CodeState.AVAILABLE,
            expire_time=END,
            user_code_redemptions=0,
        )
        assert type(world.refuses(redeem())) is CodeNotAssignedToUser
        world.state.candidates = {BOOK_ID: ["A"]}
        assert world.does(assign_random("bob")).event.code == "A"

    def test_no_earlier_than_every_lock_is_over_that_was_taken_in_time(self) -> None:
        world = due(given())
        world.now -= MOMENT
        assert type(world.refuses(return_to_pool(world))) is InvalidStateTransition
        world.now += MOMENT
        world.does(return_to_pool(world))

    def test_a_code_that_was_redeemed_stays_with_its_user(self) -> None:
        world = given(max_redemptions_per_code=5)
        redeemed = world.does(replace(redeem(), lease=PERMIT)).event
        assert type(due(world).refuses(return_to_pool(world))) is InvalidStateTransition
        world.does(rollback(redeemed))
        world.does(return_to_pool(world))

    def test_a_lock_keeps_it_however_long_it_lives(self) -> None:
        world = given()
        held = world.does(lock(expire_time=END + LOCK_LIFE + MINUTE)).event
        assert type(due(world).refuses(return_to_pool(world))) is CodeLocked
        world.now += MINUTE
        # Over by its time, and within the grace.
        assert type(world.refuses(return_to_pool(world))) is CodeLocked
        world.now += timedelta(seconds=5)
        assert world.copy().does(return_to_pool(world)).event.code == "A"
        world.now -= MINUTE
        world.does(unlock(held))
        world.does(return_to_pool(world))

    def test_a_lock_that_was_taken_in_time_is_redeemed(self) -> None:
        world = given()
        world.now = END - MOMENT
        held = world.does(lock(expire_time=END + LOCK_LIFE - timedelta(seconds=5))).event
        world.now = END + LOCK_LIFE - timedelta(seconds=5) - MOMENT
        assert type(world.refuses(return_to_pool(world))) is InvalidStateTransition
        world.does(redeem(lock=token(held)))

    def test_another_assignment_of_the_same_code_is_not_meant(self) -> None:
        world = given()
        command = return_to_pool(due(world))
        world.now = NOW
        world.does(revoke())
        world.does(assign())
        world.now = END + LOCK_LIFE
        assert type(world.refuses(command)) is InvalidStateTransition

    @pytest.mark.parametrize("change", [{"return_to_pool": False}])
    def test_a_book_that_no_longer_says_so_returns_nothing(self, change: dict[str, Any]) -> None:
        world = due(given())
        world.change_book(**change)
        assert type(world.refuses(return_to_pool(world))) is InvalidStateTransition

    def test_a_disabled_code_stays_disabled(self) -> None:
        world = due(given())
        world.does(disable())
        world.does(return_to_pool(world))
        assert world.code() == Code("A", BOOK_ID, CodeState.DISABLED, 0, 0)

    def test_a_code_that_others_have_stays_assigned(self) -> None:
        world = given(max_redemptions_per_code=2)
        world.does(assign(user="bob"))
        due(world).does(return_to_pool(world))
        assert world.code() == Code("A", BOOK_ID, CodeState.ASSIGNED, 0, 1)

    def test_it_happens_once(self) -> None:
        world = due(given())
        command = return_to_pool(world)
        world.does(command)
        assert world.does(command).replayed


class TestBooks:
    def test_it_needs_a_book_that_requires_an_assignment(self) -> None:
        draft = book(state=BookState.DRAFT, assignment_policy=AssignmentPolicy.REQUIRED)
        assert book_updates.updated(draft, {"return_to_pool": True}, NOW).return_to_pool
        bearer = replace(draft, assignment_policy=AssignmentPolicy.BEARER)
        with pytest.raises(InvalidArgument) as caught:
            book_updates.updated(bearer, {"return_to_pool": True}, NOW)
        assert [it.field for it in caught.value.violations] == ["coupon_book.return_to_pool"]

    def test_it_can_be_switched_off_and_not_on_once_the_book_was_active(self) -> None:
        used = book(assignment_policy=AssignmentPolicy.REQUIRED, return_to_pool=True)
        off = book_updates.updated(used, {"return_to_pool": False}, NOW)
        with pytest.raises(InvalidStateTransition) as caught:
            book_updates.updated(off, {"return_to_pool": True}, NOW)
        assert caught.value.metadata["field"] == "return_to_pool"
