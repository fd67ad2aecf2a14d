"""Locks that are wished for at the same time are taken together, each answered for itself."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest import mock

from service import Api, unique
from steps import get_lock, locking_code, locks_of, tried
from waiting import until

from coupon_service.coalesce import Changes, Coalescer, Later
from coupon_service.errors import Contention
from coupon_service.lock_taking import BATCHES_IN_FLIGHT, LockTaking
from coupon_service.model import Lock, Outcome, Unit


def taken_together(api: Api, calls: Sequence[Callable[[], object]]) -> list[str]:
    """Calls of LockCode that share a batch: the reason of each, or OK.

    Those of others take up all batches that there may be until all of them have come.
    """
    batches: list[set[str]] = []
    begin = threading.Event()
    waiting = 0
    look: Any = LockTaking._look
    enqueue: Any = getattr(Coalescer, "_enqueue")  # noqa: B009 - of any type

    async def held_up(self: LockTaking, commands: Sequence[Lock]) -> list[Outcome]:
        batches.append({command.call.request_id for command in commands})
        while not begin.is_set():
            await asyncio.sleep(0.002)
        return await look(self, commands)

    def counted(self: Coalescer[Any, Any], unit: Any) -> asyncio.Future[Any]:
        nonlocal waiting
        waiting += isinstance(unit, Later)
        return enqueue(self, unit)

    others = [locking_code(api) for _ in range(BATCHES_IN_FLIGHT)]
    with (
        mock.patch.object(LockTaking, "_look", held_up),
        mock.patch.object(Coalescer, "_enqueue", counted),
        ThreadPoolExecutor(len(others) + len(calls)) as pool,
    ):
        for number, code in enumerate(others, 1):
            pool.submit(api.lock, code, unique("other"))
            until(lambda number=number: len(batches) == number)
        answers = [pool.submit(tried, call) for call in calls]
        until(lambda: waiting == len(others) + len(calls))
        begin.set()
        found = [answer.result() for answer in answers]
    assert max(map(len, batches)) > 1
    return found


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
    assert taken_together(api, calls) == expected
    assert get_lock(api, before.lock.lock_id) == before.lock
    held = Counter(lock.code for lock in [*locks_of(api, user_id=ann), *locks_of(api, user_id=bob)])
    assert held == Counter(codes)


def test_when_they_cannot_be_recorded_together_all_places_are_given_back(api: Api) -> None:
    codes, user = [locking_code(api) for _ in range(4)], unique("user")
    with mock.patch.object(Changes, "submit_joined", side_effect=Contention):
        found = taken_together(api, [lambda code=code: api.lock(code, user) for code in codes])
    assert set(found) == {"CONTENTION"}
    assert locks_of(api, user_id=user) == []
    for code in codes:
        api.lock(code, unique("another"))


def test_one_that_nobody_foresaw_does_not_fail_the_others(api: Api) -> None:
    codes, poison = [locking_code(api) for _ in range(8)], unique("poison")
    requests = [poison, *(unique("request") for _ in codes[1:])]
    submit_joined = Changes.submit_joined
    poisoned: list[int] = []

    async def submit(self: Changes, unit: Unit) -> list[Outcome]:
        if any(command.call.request_id == poison for command in unit.commands):
            poisoned.append(unit.size)
            raise ValueError(poison)
        return await submit_joined(self, unit)

    with mock.patch.object(Changes, "submit_joined", submit):
        first, *others = taken_together(
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
