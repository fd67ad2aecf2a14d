"""Locks that are let go at the same time are released together, each answered for itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from unittest import mock

from support.calls import get_lock, locking_code, locks_of, unlock_by_id
from support.service import Api, unique
from support.shared_batches import answered_together

from coupon_service.batching import CommandLanes
from coupon_service.errors import Contention, LocksUnavailable
from coupon_service.leases import Leases
from coupon_service.locks.history import LockHistory
from coupon_service.model import ChangeLock, CommandGroup, Outcome
from coupon_service.v1 import audit_service_pb2 as audit
from coupon_service.v1 import redemption_service_pb2 as redemptions


def released_together(api: Api, calls: Sequence[Callable[[], object]]) -> list[str]:
    """Calls of UnlockCode that share a batch: the reason of each, or OK."""

    def other() -> Callable[[], object]:
        token = api.lock(locking_code(api), unique("other")).lock_token
        return lambda: api.unlock(token)

    return answered_together(LockHistory, "record_joined", other, calls)


def test_each_of_many_locks_is_answered_for_itself(api: Api) -> None:
    """Some are released, some were before or twice at once, some are used, or are none of ours."""
    ann = unique("ann")
    codes = [locking_code(api) for _ in range(4)]
    locks = [api.lock(code, ann) for code in codes]
    used, released, *held = locks
    api.redeem(codes[0], ann, lock_token=used.lock_token)
    api.unlock(released.lock_token)
    calls: list[Callable[[], object]] = [
        lambda: api.unlock(used.lock_token),
        lambda: api.unlock(released.lock_token),
        lambda: api.unlock("none of ours"),
        *(lambda lock=lock: api.unlock(lock.lock_token) for lock in (*held, *held)),
    ]
    found = released_together(api, calls)
    assert found == ["LOCK_EXPIRED", "OK", "LOCK_TOKEN_MISMATCH"] + ["OK"] * 4
    assert locks_of(api, user_id=ann) == []
    states = [get_lock(api, lock.lock.lock_id).state for lock in locks]
    assert states == [redemptions.LOCK_STATE_REDEEMED] + [redemptions.LOCK_STATE_RELEASED] * 3
    ends = [
        it
        for code in codes[1:]
        for it in api.events(code=code, types=[audit.AUDIT_EVENT_TYPE_UNLOCKED])
    ]
    assert len(ends) == 3
    for code in codes[1:]:
        api.lock(code, unique("another"))


def test_when_they_cannot_be_recorded_all_stay_held(api: Api) -> None:
    ann = unique("ann")
    locks = [api.lock(locking_code(api), ann) for _ in range(4)]
    submit_joined = CommandLanes.submit_joined

    async def submit(self: CommandLanes, group: CommandGroup) -> list[Outcome]:
        if any(isinstance(command, ChangeLock) for command in group.commands):
            raise Contention
        return await submit_joined(self, group)

    with mock.patch.object(CommandLanes, "submit_joined", submit):
        found = released_together(
            api, [lambda lock=lock: api.unlock(lock.lock_token) for lock in locks]
        )
    assert set(found) == {"CONTENTION"}
    assert len(locks_of(api, user_id=ann)) == len(locks)


def test_they_are_released_while_redis_is_away(api: Api) -> None:
    ann = unique("ann")
    locks = [api.lock(locking_code(api), ann) for _ in range(4)]
    with mock.patch.object(Leases, "release_each", side_effect=LocksUnavailable):
        found = released_together(
            api, [lambda lock=lock: api.unlock(lock.lock_token) for lock in locks]
        )
    assert set(found) == {"OK"}
    states = {get_lock(api, lock.lock.lock_id).state for lock in locks}
    assert states == {redemptions.LOCK_STATE_RELEASED}
    for lock in locks:  # a repeat gives the permit back that is still taken
        assert unlock_by_id(api, lock.lock.lock_id).replayed
        api.lock(lock.lock.code, unique("another"))
