"""LockCode with the token of a lock of another user, which goes over."""

from __future__ import annotations

from typing import Any

import pytest
from unit.rules.commands import assign, call, extend, lock, redeem, token, unlock
from unit.rules.world import MINUTE, World, active, book, lockable

from coupon_service.errors import (
    CodeNotAssignedToUser,
    CouponServiceError,
    LockExpired,
    LockTokenMismatch,
)
from coupon_service.model import (
    AssignmentPolicy,
    Event,
    EventType,
    Lock,
    LockPolicy,
    LockState,
)


def held(world: World) -> Event:
    """The lock of a guest, for a minute."""
    return world.does(lock(user="guest")).event


def take_over(taken: Event, user: str = "ann", code: str = "A", **more: Any) -> Lock:
    """The command of LockCode with the token of a lock, with the permit of that."""
    return lock(code, user, taken_from=token(taken), expire_time=taken.expire_time, **more)


def test_the_old_lock_ends_in_the_transaction_of_the_new_one() -> None:
    world = lockable()
    old = held(world)
    world.now += MINUTE / 2
    done = world.does(take_over(old))
    assert done.lock is not None
    assert (done.lock.user_id, done.lock.expire_time) == ("ann", old.expire_time)
    assert done.lock.fence > (old.fence or 0)
    ended, taken = world.ledger[-2:]
    assert (ended.type, ended.lock_id, ended.user_id) == (EventType.UNLOCKED, old.lock_id, "guest")
    assert (taken.type, taken.lock_id, taken.user_id) == (EventType.LOCKED, taken.event_id, "ann")
    # By the ledger alone, whatever Redis says.
    for user in ("guest", "ann"):
        error = world.refuses(redeem(user=user, lock=token(old)))
        assert type(error) is (LockExpired if user == "guest" else LockTokenMismatch)
    world.does(redeem(user="ann", lock=token(taken)))


def test_a_repeat_is_answered_with_the_new_lock() -> None:
    world = lockable()
    command = take_over(held(world), by=call("r1"))
    first = world.does(command)
    again = world.does(command)
    assert again.replayed
    assert again.lock == first.lock
    assert again.lock is not None
    assert again.lock.state is LockState.HELD


def test_unlocking_the_old_lock_is_a_repeat() -> None:
    world = lockable()
    old = held(world)
    world.does(take_over(old))
    assert world.does(unlock(old)).replayed


def test_without_a_permit_it_is_decided_as_well() -> None:
    world = lockable()
    old = held(world)
    assert world.asks_for_a_lease(take_over(old, lease=None))
    world.does(unlock(old))
    assert type(world.refuses(take_over(old, lease=None))) is LockExpired


@pytest.mark.parametrize("end", ["released", "expired", "redeemed"])
def test_a_lock_that_is_over_does_not_go_over(end: str) -> None:
    world = lockable(max_redemptions_per_code=5)
    old = held(world)
    if end == "released":
        world.does(unlock(old))
    elif end == "redeemed":
        world.does(redeem(user="guest", lock=token(old)))
    else:
        world.now += MINUTE
    assert type(world.refuses(take_over(old))) is LockExpired


def test_the_token_of_before_an_extension_is_good_for_as_long_as_it_says() -> None:
    world = lockable()
    old = held(world)
    world.does(extend(old, world.now + 3 * MINUTE))
    world.copy().does(take_over(old))
    world.now += MINUTE
    assert type(world.refuses(take_over(old))) is LockExpired


def test_a_lock_on_another_code_does_not_go_over() -> None:
    world = lockable()
    assert type(world.refuses(take_over(held(world), code="B"))) is LockTokenMismatch


@pytest.mark.parametrize("error", [CodeNotAssignedToUser])
def test_the_user_has_to_be_allowed_to_lock_the_code(error: type[CouponServiceError]) -> None:
    policy = AssignmentPolicy.REQUIRED
    world = World(book(lock_policy=LockPolicy.OPTIONAL, assignment_policy=policy))
    world.does(assign(user="guest"))
    old = held(world)
    assert type(world.refuses(take_over(old))) is error
    world.put(active("ann"))
    world.does(take_over(old))
