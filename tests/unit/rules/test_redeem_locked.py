"""RedeemCode in books with locking: tokens, fences, and permits without a token."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from unit.rules.commands import assign, call, extend, lock, redeem, token, unlock
from unit.rules.world import MINUTE, MOMENT, NOW, PERMIT, World, active, lockable

from coupon_service.errors import (
    BookExpired,
    BookNotActive,
    BookNotStarted,
    CodeAlreadyRedeemed,
    CodeLocked,
    CodeNotAssignedToUser,
    CouponServiceError,
    LockExpired,
    LockRequired,
    LockTokenMismatch,
    OrderBelowMinimum,
)
from coupon_service.model import (
    AssignmentPolicy,
    AssignmentState,
    BookState,
    Done,
    Lease,
    LockPolicy,
    Redeem,
)
from coupon_service.rules import redemption_refusals


class TestPolicy:
    def test_where_it_is_required_a_token_has_to_be_shown(self) -> None:
        world = lockable(LockPolicy.REQUIRED)
        assert type(world.refuses(redeem())) is LockRequired
        assert type(world.refuses(redeem(lease=PERMIT))) is LockRequired
        locked = world.does(lock()).event
        world.does(redeem(lock=token(locked)))

    def test_where_it_is_optional_a_permit_is_needed_without_token(self) -> None:
        world = lockable()
        assert world.asks_for_a_lease(redeem())
        world.does(redeem(lease=PERMIT))

    def test_where_it_is_off_nothing_is_needed(self) -> None:
        world = World()
        assert not world.asks_for_a_lease(redeem())
        world.does(redeem())

    def test_locks_of_before_are_minded_until_they_are_over(self) -> None:
        world = lockable()
        world.change_book(lock_policy=LockPolicy.OFF, locks_until=NOW + MINUTE)
        world.now = NOW + MINUTE - MOMENT
        assert world.asks_for_a_lease(redeem())
        assert type(world.refuses(redeem(lease=Lease(permits_taken=2)))) is CodeLocked
        world.now += MOMENT
        world.does(redeem())

    def test_a_token_is_still_good_when_locking_was_switched_off(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.change_book(lock_policy=LockPolicy.OFF)
        world.does(redeem(lock=token(locked)))

    def test_what_is_refused_anyway_needs_no_permit(self) -> None:
        world = lockable(min_order_amount_minor=1_000)
        assert type(world.refuses(redeem())) is OrderBelowMinimum


class TestToken:
    def test_the_ledger_names_the_lock_and_the_assignment_keeps_the_fence(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        done = world.does(redeem(lock=token(locked)))
        assert (done.event.lock_id, done.event.fence) == (locked.event_id, 1)
        assert done.assignment == world.assignment()
        assert world.assignment().state is AssignmentState.UNASSIGNED
        assert (world.assignment().redemptions, world.assignment().fence) == (1, 1)

    def test_an_assignment_keeps_the_fence(self) -> None:
        world = lockable()
        world.does(assign())
        locked = world.does(lock()).event
        world.does(redeem(lock=token(locked)))
        assert world.assignment() == active(state=AssignmentState.REDEEMED, redemptions=1, fence=1)

    def test_the_own_permit_never_stands_in_the_way(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.does(redeem(lock=token(locked), lease=Lease(permits_taken=0)))

    def test_it_is_for_one_user_and_one_code(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        assert type(world.refuses(redeem(user="bob", lock=token(locked)))) is LockTokenMismatch
        assert type(world.refuses(redeem("B", lock=token(locked)))) is LockTokenMismatch

    def test_it_is_good_until_it_expires(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now = NOW + MINUTE
        assert type(world.refuses(redeem(lock=token(locked)))) is LockExpired
        world.now -= MOMENT
        world.does(redeem(lock=token(locked)))

    def test_the_token_of_an_extension_is_good_for_longer(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        extended = world.does(extend(locked, NOW + 2 * MINUTE)).event
        world.now = NOW + MINUTE
        assert type(world.refuses(redeem(lock=token(locked)))) is LockExpired
        world.does(redeem(lock=token(locked, extended.expire_time)))

    def test_it_is_of_no_use_when_redis_says_that_the_lock_is_gone(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.does(unlock(locked))
        gone = redeem(lock=token(locked), lease=Lease(permits_taken=2, gone=True))
        assert type(world.refuses(gone)) is LockExpired

    def test_a_permit_that_redis_had_lost_has_to_fit_again(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        retaken = redeem(lock=token(locked), lease=Lease(permits_taken=2, retry_after_ms=700))
        error = world.refuses(retaken)
        assert type(error) is CodeLocked
        assert error.metadata == {"retry_after_ms": "700"}
        world.does(replace(retaken, lease=PERMIT))


class TestTakenInTime:
    """With the token of a lock that is held, ends are judged when it was taken."""

    def test_what_has_ended_since_does_not_count(self) -> None:
        world = lockable()
        world.put(active(expire_time=NOW + MOMENT))
        locked = world.does(lock()).event
        world.change_book(end_time=NOW + MOMENT)
        world.now += MOMENT
        assert type(world.refuses(redeem(lease=PERMIT))) is BookExpired
        world.does(redeem(lock=token(locked)))

    @pytest.mark.parametrize("end", [NOW - MOMENT, NOW])
    def test_what_had_ended_by_then_does(self, end: datetime) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now += MINUTE / 2
        world.change_book(end_time=end)
        assert type(world.refuses(redeem(lock=token(locked)))) is BookExpired

    def test_a_start_that_has_not_come_does(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now += MOMENT
        world.change_book(start_time=NOW + 2 * MOMENT)
        assert type(world.refuses(redeem(lock=token(locked)))) is BookNotStarted
        world.now += MOMENT
        world.does(redeem(lock=token(locked)))

    def test_an_extended_lock_was_acquired_when_it_was_acquired(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        world.now += MOMENT
        extended = world.does(extend(locked, NOW + 3 * MINUTE)).event
        world.change_book(end_time=NOW + MOMENT)
        world.now += MINUTE
        world.does(redeem(lock=token(locked, extended.expire_time)))

    @pytest.mark.parametrize(
        ("kind", "lease"),
        [("released", Lease()), ("gone", Lease(gone=True)), ("of another", Lease())],
    )
    def test_only_with_a_lock_that_is_held(self, kind: str, lease: Lease) -> None:
        world = lockable(max_redemptions_per_code=2)
        locked = world.does(lock(user="bob" if kind == "of another" else "ann")).event
        if kind == "released":
            world.does(unlock(locked))
        world.change_book(end_time=NOW + MOMENT)
        world.now += MOMENT
        assert type(world.refuses(redeem(lock=token(locked), lease=lease))) is BookExpired

    def test_nothing_else_is_judged_by_it(self) -> None:
        changes: dict[type[CouponServiceError], dict[str, Any]] = {
            BookNotActive: {"state": BookState.PAUSED},
            OrderBelowMinimum: {"min_order_amount_minor": 1_000},
            CodeNotAssignedToUser: {"assignment_policy": AssignmentPolicy.REQUIRED},
        }
        for error, change in changes.items():
            world = lockable()
            locked = world.does(lock()).event
            world.change_book(end_time=NOW + MOMENT, **change)
            world.now += MOMENT
            assert type(world.refuses(redeem(lock=token(locked)))) is error


class TestFence:
    def test_a_token_is_good_once(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        locked = world.does(lock()).event
        world.does(redeem(lock=token(locked)))
        assert type(world.refuses(redeem(lock=token(locked)))) is LockExpired

    def test_also_within_a_batch(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        locked = world.does(lock()).event
        first, second = world.batch(redeem(lock=token(locked)), redeem(lock=token(locked)))
        assert isinstance(first, Done)
        assert type(second) is LockExpired

    def test_an_older_token_is_refused_after_a_newer_one(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        older = world.does(lock()).event
        newer = world.does(lock()).event
        assert (older.fence, newer.fence) == (1, 2)
        world.does(redeem(lock=token(newer)))
        assert type(world.refuses(redeem(lock=token(older)))) is LockExpired

    def test_a_newer_token_is_good_after_an_older_one(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        older = world.does(lock()).event
        newer = world.does(lock()).event
        world.does(redeem(lock=token(older)))
        world.does(redeem(lock=token(newer)))
        assert world.assignment().fence == 2

    def test_a_redemption_without_token_leaves_the_fence(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        locked = world.does(lock()).event
        world.does(redeem(lock=token(locked)))
        world.does(redeem(lease=PERMIT))
        assert (world.assignment().redemptions, world.assignment().fence) == (2, 1)

    def test_the_fence_of_one_user_does_not_concern_another(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        anns = world.does(lock(user="ann")).event
        bobs = world.does(lock(user="bob")).event
        world.does(redeem(user="bob", lock=token(bobs)))
        world.does(redeem(user="ann", lock=token(anns)))


class TestWithoutToken:
    def test_it_never_passes_the_lock_of_another(self) -> None:
        world = lockable()
        error = world.refuses(redeem(lease=Lease(permits_taken=2, retry_after_ms=900)))
        assert type(error) is CodeLocked
        assert error.metadata == {"retry_after_ms": "900"}

    def test_it_uses_the_own_lock_up(self) -> None:
        world = lockable()
        locked = world.does(lock()).event
        lease = Lease(permits_taken=1, held_lock_id=locked.event_id)
        event = world.does(redeem(lease=lease)).event
        assert (event.lock_id, event.fence) == (locked.event_id, None)

    def test_it_uses_no_lock_up_that_was_not_recorded_or_has_ended(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        unknown = Lease(permits_taken=1, held_lock_id=UUID(int=7))
        assert world.does(redeem(by=call("r1"), lease=unknown)).event.lock_id is None
        locked = world.does(lock()).event
        world.does(redeem(by=call("r2"), lock=token(locked)))
        used = Lease(permits_taken=1, held_lock_id=locked.event_id)
        assert world.does(redeem(by=call("r3"), lease=used)).event.lock_id is None

    def test_it_uses_no_lock_up_that_another_user_got_with_the_same_request_id(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        bobs = world.does(lock(user="bob")).event
        same_id = Lease(permits_taken=1, held_lock_id=bobs.event_id)
        assert world.does(redeem(user="ann", lease=same_id)).event.lock_id is None
        world.does(redeem(user="bob", lock=token(bobs)))

    def test_the_token_that_was_shown_is_the_one_that_is_named(self) -> None:
        world = lockable(max_redemptions_per_code=5)
        locked = world.does(lock()).event
        lease = Lease(held_lock_id=UUID(int=7))
        event = world.does(redeem(lock=token(locked), lease=lease)).event
        assert event.lock_id == locked.event_id


def every_reason(world: World, command: Redeem) -> list[type[CouponServiceError]]:
    code = world.code(command.code)
    found = redemption_refusals(
        command, code, world.state.books[code.book_id], world.state, world.now
    )
    return [type(error) for error in found]


@pytest.mark.parametrize(
    ("policy", "reasons"),
    [
        (LockPolicy.REQUIRED, [OrderBelowMinimum, LockRequired, CodeLocked]),
        (LockPolicy.OPTIONAL, [OrderBelowMinimum, CodeLocked]),
    ],
)
def test_the_lock_is_the_last_reason(
    policy: LockPolicy, reasons: list[type[CouponServiceError]]
) -> None:
    world = lockable(policy, min_order_amount_minor=1_000)
    assert every_reason(world, redeem(lease=Lease(permits_taken=2))) == reasons


def test_of_a_token_one_thing_is_said() -> None:
    world = lockable()
    locked = world.does(lock()).event
    world.now += MINUTE
    lease = Lease(permits_taken=2, gone=True)
    assert every_reason(world, redeem(lock=token(locked), lease=lease)) == [LockExpired]
    mismatched = redeem(user="bob", lock=token(locked), lease=lease)
    assert every_reason(world, mismatched) == [LockTokenMismatch]


def test_a_used_up_code_is_not_called_locked_as_well() -> None:
    world = lockable()
    world.does(redeem(user="bob", lease=PERMIT))
    assert every_reason(world, redeem(lease=Lease(permits_taken=2))) == [CodeAlreadyRedeemed]
