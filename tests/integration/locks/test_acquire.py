"""Locks that are requested at the same time are acquired together, each answered for itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from unittest import mock

from support.calls import get_lock, locking_code, locks_of
from support.service import Api, unique
from support.shared_batches import answered_together

from coupon_service.batching import CommandLanes
from coupon_service.errors import Contention
from coupon_service.locks.acquire import LockAcquirer
from coupon_service.locks.history import LockHistory
from coupon_service.model import CommandGroup, Outcome


def acquired_together(api: Api, calls: Sequence[Callable[[], object]]) -> list[str]:
    """Calls of LockCode that share a batch: the reason of each, or OK."""

    def other() -> Callable[[], object]:
        code = locking_code(api)
        return lambda: api.lock(code, unique("other"))

    with mock.patch.object(LockHistory, "is_idle", False):  # also where there is one alone
        return answered_together(LockAcquirer, "_acquire_joined", other, calls)


def test_each_of_many_locks_is_answered_for_itself(api: Api) -> None:
    """Some are granted, some recorded before, some are of another user, and some of no code."""
    codes = [locking_code(api) for _ in range(6)]
    ann, bob, request_id = unique("ann"), unique("bob"), unique("request")
    before = api.lock(codes[0], ann, request_id=request_id)
    calls: list[Callable[[], object]] = [
        *(lambda code=code: api.lock(code, ann) for code in codes[:3]),
        lambda: api.lock(codes[0], ann, request_id=request_id),
        lambda: api.lock(codes[0], bob),
        lambda: api.lock("NOSUCHCODE", bob),
        *(lambda code=code: api.lock(code, bob) for code in codes[3:]),
        *(lambda code=code: api.lock(code, bob) for code in codes[3:]),
    ]
    expected = ["OK"] * 4 + ["CODE_LOCKED", "CODE_NOT_FOUND"] + ["OK"] * 6
    assert acquired_together(api, calls) == expected
    assert get_lock(api, before.lock.lock_id) == before.lock
    held = Counter(lock.code for lock in [*locks_of(api, user_id=ann), *locks_of(api, user_id=bob)])
    assert held == Counter(codes)


def test_when_they_cannot_be_recorded_together_all_permits_are_given_back(api: Api) -> None:
    codes, user = [locking_code(api) for _ in range(4)], unique("user")
    with mock.patch.object(CommandLanes, "submit_joined", side_effect=Contention):
        found = acquired_together(api, [lambda code=code: api.lock(code, user) for code in codes])
    assert set(found) == {"CONTENTION"}
    assert locks_of(api, user_id=user) == []
    for code in codes:
        api.lock(code, unique("another"))


def test_one_that_nobody_foresaw_does_not_fail_the_others(api: Api) -> None:
    codes, poison = [locking_code(api) for _ in range(8)], unique("poison")
    requests = [poison, *(unique("request") for _ in codes[1:])]
    submit_joined = CommandLanes.submit_joined
    poisoned: list[int] = []

    async def submit(self: CommandLanes, group: CommandGroup) -> list[Outcome]:
        if any(command.call.request_id == poison for command in group.commands):
            poisoned.append(group.size)
            raise ValueError(poison)
        return await submit_joined(self, group)

    with mock.patch.object(CommandLanes, "submit_joined", submit):
        first, *others = acquired_together(
            api,
            [
                lambda code=code, request_id=request_id: api.lock(
                    code, unique("user"), request_id=request_id
                )
                for code, request_id in zip(codes, requests, strict=True)
            ],
        )
    assert first == "INTERNAL"
    assert set(others) == {"OK"}
    assert poisoned == [len(codes), 1]
