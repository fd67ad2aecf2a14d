"""Several requests of one user for one lock: each is answered with it, or that it is over."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import pytest
from model.clock import Clock, clocked_server
from support.calls import extend, get_lock, locking_code, locks_of
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    audit,
    redemptions,
    refused,
    struct,
    unique,
)
from support.waiting import until

from coupon_service.errors import DatabaseUnavailable
from coupon_service.locks import acquire as lock_acquire
from coupon_service.locks.acquire import LockAcquirer
from coupon_service.locks.permits import BatchPermits
from coupon_service.model import Lock
from coupon_service.store.commands import executor

USES = 3
LOCK_S = 60
HELD = redemptions.LOCK_STATE_HELD
ENDS = {
    "released": "RELEASED",
    "redeemed": "REDEEMED",
    "redeemed without its token": "REDEEMED",
    "expired": "EXPIRED",
}

Held = redemptions.LockCodeResponse


@pytest.fixture(scope="module")
def clock(redis_alone_url: str) -> Clock:
    return Clock(redis_alone_url)


@pytest.fixture(scope="module")
def server(
    new_database: Callable[[], AbstractContextManager[str]], redis_alone_url: str, clock: Clock
) -> Iterator[ServerThread]:
    with (
        new_database() as database_url,
        clocked_server(database_url, redis_alone_url, clock) as running,
    ):
        yield running


@pytest.fixture(scope="module")
def api(server: ServerThread) -> Iterator[Api]:
    client = Api(server.address)
    yield client
    client.close()


@pytest.fixture
def end(server: ServerThread, api: Api, clock: Clock) -> Callable[[Held, str], None]:
    """Ends a lock."""

    def end(held: Held, how: str) -> None:
        lock = held.lock
        match how:
            case "released":
                api.unlock(held.lock_token)
            case "redeemed":
                api.redeem(lock.code, lock.user_id, lock_token=held.lock_token)
            case "redeemed without its token":
                api.redeem(lock.code, lock.user_id)
            case _:
                clock.advance(LOCK_S * 1_000 + server.settings.lock_grace_ms + 1)

    return end


@contextmanager
def without_ledger() -> Generator[None]:
    """Whoever acquires a permit meanwhile does not come to record the lock, without knowing it."""
    with mock.patch.object(executor, "apply", side_effect=DatabaseUnavailable):
        yield


@contextmanager
def stopped_before(owner: type, step: str, *requests: str) -> Generator[tuple[set[str], list[str]]]:
    """Requests that stop where this method of `owner` begins: who has come there, and a list of
    those that may go on, one after the other."""
    stopped = set[str]()
    go_on: list[str] = []
    real: Any = getattr(owner, step)
    busy = asyncio.Lock()

    async def patched(self: Any, argument: Any) -> Any:
        command: Lock = getattr(self, "_commands", argument)[0]
        request = command.call.request_id
        if request not in requests or request in stopped:
            return await real(self, argument)
        stopped.add(request)
        while request not in go_on:
            await asyncio.sleep(0.002)
        while go_on[0] != request:
            await asyncio.sleep(0.002)
        async with busy:
            try:
                return await real(self, argument)
            finally:
                go_on.remove(request)

    with mock.patch.object(owner, step, patched):
        yield stopped, go_on


def assert_over(lock: Callable[[], object], how: str) -> None:
    """A repeat is told how the lock ended, and takes no other."""
    for _ in range(2):
        with refused("LOCK_EXPIRED") as it:
            lock()
        assert it.metadata == {"state": ENDS[how]}


def assert_the_only_lock(api: Api, lock: redemptions.Lock) -> None:
    """The user had no other lock on the code, and every use that is left is free."""
    locked = [it for it in api.events(code=lock.code) if it.type == audit.AUDIT_EVENT_TYPE_LOCKED]
    assert {it.lock_id for it in locked} == {lock.lock_id}
    assert locks_of(api, user_id=lock.user_id) == []
    for _ in range(USES - api.get_code(lock.code).redemption_count):
        api.lock(lock.code, unique("another"))


@pytest.mark.parametrize("how", ENDS)
def test_who_took_over_the_permit_of_a_lost_attempt_has_that_lock_and_no_other(
    api: Api, end: Callable[[Held, str], None], how: str
) -> None:
    code, user, lost, next_ = locking_code(api, USES), unique("user"), unique("1"), unique("2")
    with without_ledger(), refused("DATABASE_UNAVAILABLE"):
        api.lock(code, user, request_id=lost, ttl_s=LOCK_S)
    held = api.lock(code, user, request_id=next_, ttl_s=LOCK_S)
    assert (held.lock.state, held.replayed) == (HELD, False)
    for request in (next_, lost):
        again = api.lock(code, user, request_id=request, ttl_s=LOCK_S)
        assert again.replayed
        assert again.lock == held.lock
    end(held, how)
    for request in (next_, lost):
        assert_over(lambda it=request: api.lock(code, user, request_id=it, ttl_s=LOCK_S), how)
    assert_the_only_lock(api, held.lock)


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize(
    "first", [0, 1], ids=["who acquired the permit", "who was answered with it"]
)
def test_two_requests_at_the_same_moment_have_the_same_lock_and_no_other(
    api: Api, end: Callable[[Held, str], None], first: int, how: str
) -> None:
    """`first`: which of them comes to the ledger first."""
    code, user, requests = locking_code(api, USES), unique("user"), (unique("1"), unique("2"))

    def lock(request: str) -> Held:
        return api.lock(code, user, request_id=request, ttl_s=LOCK_S)

    with (
        ThreadPoolExecutor() as pool,
        mock.patch.object(lock_acquire, "ROWS_LOCKED_MAX_S", 0),
        stopped_before(LockAcquirer, "_record", *requests) as (stopped, go_on),
    ):
        calls = [pool.submit(lock, requests[0])]
        until(lambda: requests[0] in stopped)
        calls.append(pool.submit(lock, requests[1]))
        until(lambda: requests[1] in stopped)
        go_on += [requests[first], requests[1 - first]]
    one, other = (call.result() for call in calls)
    assert one.lock == other.lock
    assert {one.replayed, other.replayed} == {False, True}
    end(one, how)
    for request in requests:
        assert_over(lambda it=request: lock(it), how)
    assert_the_only_lock(api, one.lock)


@pytest.mark.parametrize("how", ENDS)
def test_who_asked_again_while_it_was_held_has_that_lock_and_no_other(
    api: Api, end: Callable[[Held, str], None], how: str
) -> None:
    code, user, request_id = locking_code(api, USES), unique("user"), unique("request")
    held = api.lock(code, user, ttl_s=LOCK_S)
    assert api.lock(code, user, request_id=request_id).lock == held.lock
    end(held, how)
    assert_over(lambda: api.lock(code, user, request_id=request_id), how)
    assert_the_only_lock(api, held.lock)


def test_an_expired_lock_is_reported_to_repeats_of_acquiring_and_extending_it(
    api: Api, end: Callable[[Held, str], None]
) -> None:
    code, user, taken, extended = locking_code(api), unique("user"), unique("1"), unique("2")
    held = api.lock(code, user, ttl_s=LOCK_S, request_id=taken)
    longer = extend(api, held.lock_token, ttl_s=LOCK_S, request_id=extended)
    end(held, "expired")
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_EXPIRED
    for call in (
        lambda: api.lock(code, user, ttl_s=LOCK_S, request_id=taken),
        lambda: extend(api, held.lock_token, ttl_s=LOCK_S, request_id=extended),
        lambda: extend(api, longer.lock_token, ttl_s=LOCK_S, request_id=extended),
    ):
        assert_over(call, "expired")


def test_a_request_that_is_sent_many_times_at_once_is_answered_with_the_lock_each_time(
    api: Api,
) -> None:
    code, user = locking_code(api, USES), unique("user")
    held = api.lock(code, user)
    for _ in range(5):
        request = redemptions.LockCodeRequest(code=code, user_id=user, request_id=unique("request"))
        answers: list[Any] = all_at_once([lambda it=request: api.redemptions.LockCode(it)] * 10)
        assert [it.lock for it in answers] == [held.lock] * 10
    assert api.event_names(code=code) == ["LOCKED"] * 6


def test_a_request_that_was_answered_with_a_lock_is_not_good_for_anything_else(api: Api) -> None:
    code, user, request_id = locking_code(api, USES), unique("user"), unique("request")
    held = api.lock(code, user)
    api.lock(code, user, request_id=request_id)
    for call in (
        lambda: api.lock(code, user, request_id=request_id, ttl_s=7),
        lambda: api.lock(code, user, request_id=request_id, metadata=struct(cart=8)),
        lambda: api.lock(code, unique("another"), request_id=request_id),
    ):
        with refused("REQUEST_ID_REUSED"):
            call()
    api.unlock(held.lock_token)
    assert_the_only_lock(api, held.lock)


def test_a_repeat_that_got_a_permit_when_the_lock_was_over_gives_it_back(api: Api) -> None:
    code, user, request_id = locking_code(api, USES), unique("user"), unique("request")
    held = api.lock(code, user)
    with (
        ThreadPoolExecutor() as pool,
        stopped_before(BatchPermits, "_acquire", request_id) as (stopped, go_on),
    ):
        repeat = pool.submit(api.lock, code, user, request_id=request_id)
        until(lambda: request_id in stopped)
        first = api.lock(code, user, request_id=request_id)
        api.unlock(held.lock_token)
        go_on.append(request_id)
        assert_over(repeat.result, "released")
    assert first.lock == held.lock
    assert_the_only_lock(api, held.lock)


def test_more_requests_than_are_remembered_have_the_lock_as_long_as_it_is_held(api: Api) -> None:
    code, user = locking_code(api, USES), unique("user")
    with mock.patch.object(lock_acquire, "REQUESTS_REMEMBERED_MAX", 3):
        held = [api.lock(code, user) for _ in range(6)]
    assert len({it.lock_token for it in held}) == 1
    assert [it.replayed for it in held] == [False] + [True] * 5
    assert api.event_names(code=code) == ["LOCKED"] * 4
    with refused("CODE_LOCKED"):
        for _ in range(USES):
            api.lock(code, unique("another"))
