"""Locks that are wished for at the same time are taken together, each answered for itself."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from unittest import mock

from service import Api, all_at_once, unique
from steps import get_lock, locking_code, locks_of, tried

from coupon_service.coalesce import Changes
from coupon_service.errors import Contention
from coupon_service.lock_taking import LockTaking
from coupon_service.model import Lock, Outcome, Unit


@contextmanager
def sizes_of_batches() -> Generator[list[int]]:
    """How many locks were taken together, each time."""
    sizes: list[int] = []
    real = LockTaking._look

    async def look(self: LockTaking, commands: Sequence[Lock]) -> list[Outcome]:
        sizes.append(len(commands))
        return await real(self, commands)

    with mock.patch.object(LockTaking, "_look", look):
        yield sizes


def test_each_of_many_locks_is_answered_for_itself(api: Api) -> None:
    """Some are granted, some recorded before, some are of another user, and some of no code."""
    codes = [locking_code(api, uses=1) for _ in range(6)]
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
    with sizes_of_batches() as sizes:
        tried_ones = all_at_once([lambda call=call: tried(call) for call in calls])
    expected = ["OK"] * 4 + ["CODE_LOCKED", "CODE_NOT_FOUND"] + ["OK"] * 6
    assert tried_ones == expected
    assert max(sizes) > 1
    assert get_lock(api, before.lock.lock_id) == before.lock
    held = Counter(lock.code for lock in [*locks_of(api, user_id=ann), *locks_of(api, user_id=bob)])
    assert held == Counter(codes)


def test_when_they_cannot_be_recorded_together_all_places_are_given_back(api: Api) -> None:
    codes, user = [locking_code(api, uses=1) for _ in range(4)], unique("user")
    with mock.patch.object(Changes, "submit_joined", side_effect=Contention):
        calls = [lambda code=code: tried(lambda: api.lock(code, user)) for code in codes]
        assert set(all_at_once(calls)) == {"CONTENTION"}
    assert locks_of(api, user_id=user) == []
    for code in codes:
        api.lock(code, unique("another"))


def test_one_that_nobody_foresaw_does_not_fail_the_others(api: Api) -> None:
    codes, user = [locking_code(api, uses=1) for _ in range(8)], unique("user")
    real = Changes.submit_joined

    async def submit(self: Changes, unit: Unit) -> list[Outcome]:
        if any(command.call.request_id == "poison" for command in unit.commands):
            raise ValueError("poison")
        return await real(self, unit)

    requests = [unique("request") for _ in codes[1:]]
    calls = [
        lambda code=code, request_id=request_id: tried(
            lambda: api.lock(code, unique(user), request_id=request_id)
        )
        for code, request_id in zip(codes, ["poison", *requests], strict=True)
    ]
    with sizes_of_batches() as sizes, mock.patch.object(Changes, "submit_joined", submit):
        first, *others = all_at_once(calls)
    assert first not in ("OK", "")
    assert set(others) == {"OK"}
    assert max(sizes) > 1
