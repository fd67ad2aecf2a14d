"""Locks that expire: nobody has to do anything, and it is recorded once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

import pytest
from grpc import StatusCode
from support.calls import extend, get_lock, locking_code, locks_of, reasons_of, tried, unlock_by_id
from support.service import (
    Api,
    ServerThread,
    books,
    lock_grace,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.waiting import until

GRACE_MS = 1_000
"""How much longer than its token a lock keeps others out: here, the statement timeout alone."""
EXPIRED = redemptions.LOCK_STATE_EXPIRED

Held = redemptions.LockCodeResponse


@dataclass(frozen=True)
class ExpiredLocks:
    """Locks of a second that were taken together, and what became of them."""

    api: Api
    locks: dict[str, Held]
    extended: redemptions.ExtendLockResponse
    free_after_s: float
    """Time between the end of the token and the lock of another user."""


@pytest.fixture(scope="module")
def api(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[Api]:
    """A client of one of two servers on the same data, which both look for expired locks."""
    with new_database() as database_url, ExitStack() as stack:
        settings = settings_for(
            database_url,
            redis_server_url,
            sweep_interval_ms=100,
            **lock_grace(GRACE_MS),
        )
        first, _second = (stack.enter_context(ServerThread(settings)) for _ in range(2))
        client = Api(first.address)
        yield client
        client.close()


@pytest.fixture(scope="module")
def expired(api: Api) -> ExpiredLocks:
    """Two locks on a code with two uses, one of which ends while we look, and one on another."""
    limits = books.BookLimits(max_redemptions_per_code=2)
    names = dict(zip(("late", "extended"), new_codes(2), strict=True))
    api.book(codes=list(names.values()), lock_policy=books.LOCK_POLICY_OPTIONAL, limits=limits)
    locks = {"extended": api.lock(names["extended"], unique("extended"), ttl_s=5)}
    extended = extend(api, locks["extended"].lock_token, ttl_s=600)
    locks["late"] = api.lock(names["late"], unique("late"), ttl_s=1)
    api.lock(names["late"], unique("beside"), ttl_s=600)
    until(lambda: _gets_in(lambda: api.lock(names["late"], unique("next"), ttl_s=600)))
    ended = locks["late"].lock.expire_time.ToDatetime(UTC)
    return ExpiredLocks(api, locks, extended, (datetime.now(UTC) - ended).total_seconds())


def test_a_code_is_free_again_when_its_lock_and_the_grace_are_over(expired: ExpiredLocks) -> None:
    assert expired.free_after_s > GRACE_MS / 1000 - 0.05


def test_the_late_holder_is_refused(expired: ExpiredLocks) -> None:
    api, held = expired.api, expired.locks["late"]
    code, user, token = held.lock.code, held.lock.user_id, held.lock_token
    assert reasons_of(api.validate(code, user, lock_token=token))[0] == "LOCK_EXPIRED"
    for call in (
        lambda: api.redeem(code, user, lock_token=token),
        lambda: extend(api, token),
        lambda: api.unlock(token),
        lambda: unlock_by_id(api, held.lock.lock_id),
    ):
        with refused("LOCK_EXPIRED", StatusCode.FAILED_PRECONDITION):
            call()
    assert get_lock(api, held.lock.lock_id).state == EXPIRED
    assert locks_of(api, user_id=user) == []


@pytest.mark.parametrize("uses", [1, 2, 0])
def test_its_holder_locks_the_code_anew_at_once(api: Api, uses: int) -> None:
    code, user = locking_code(api, uses), unique("user")
    held = api.lock(code, user, ttl_s=1)
    wait_for_the_end(held)
    newer = api.lock(code, user)
    assert newer.lock.state == redemptions.LOCK_STATE_HELD
    assert not newer.replayed
    assert newer.lock.lock_id != held.lock.lock_id
    assert newer.lock.fence > held.lock.fence
    assert locks_of(api, user_id=user) == [newer.lock]
    assert get_lock(api, held.lock.lock_id).state == EXPIRED
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)
    redeemed = api.redeem(code, user, lock_token=newer.lock_token)
    assert redeemed.redemption.lock_id == newer.lock.lock_id
    assert api.event_names(code=code) == ["LOCKED", "LOCK_EXPIRED", "LOCKED", "REDEEMED"]


def test_nobody_else_gets_in_between_a_lock_and_the_one_that_follows_it(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user, ttl_s=1)
    wait_for_the_end(held)
    newer = api.lock(code, user, ttl_s=600)
    time.sleep(GRACE_MS / 1000 + 0.1)
    for call in (api.lock, api.redeem):
        with refused("CODE_LOCKED"):
            call(code, unique("another"))
    api.unlock(newer.lock_token)
    api.lock(code, unique("another"))


def test_its_holder_who_redeems_without_a_token_is_not_kept_out(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user, ttl_s=1)
    wait_for_the_end(held)
    assert not api.redeem(code, user).redemption.lock_id
    assert get_lock(api, held.lock.lock_id).state == EXPIRED


def test_its_holder_stays_out_when_others_hold_every_use(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user, ttl_s=1)
    until(lambda: _gets_in(lambda: api.lock(code, unique("another"), ttl_s=600)))
    with refused("CODE_LOCKED"):
        api.lock(code, user)
    assert get_lock(api, held.lock.lock_id).state == EXPIRED


def test_that_a_lock_expired_is_recorded_once(expired: ExpiredLocks) -> None:
    api, held = expired.api, expired.locks["late"].lock

    def names() -> list[str]:
        events = api.events(code=held.code, user_id=held.user_id)
        assert {event.lock_id for event in events} == {held.lock_id}
        return api.event_names(code=held.code, user_id=held.user_id)

    until(lambda: "LOCK_EXPIRED" in names())
    time.sleep(0.5)  # the sweepers of both servers come by again
    assert names() == ["LOCKED", "LOCK_EXPIRED"]
    event = api.events(code=held.code, user_id=held.user_id)[-1]
    assert event.fence == held.fence
    assert event.state_before == event.state_after
    assert get_lock(api, held.lock_id).state == EXPIRED


def test_a_lock_that_is_held_is_left_alone(expired: ExpiredLocks) -> None:
    api, held, longer = expired.api, expired.locks["extended"], expired.extended
    until(lambda: datetime.now(UTC) > held.lock.expire_time.ToDatetime(UTC))
    for call in (
        lambda: api.redeem(held.lock.code, held.lock.user_id, lock_token=held.lock_token),
        lambda: extend(api, held.lock_token),
    ):
        with refused("LOCK_EXPIRED"):  # the old token keeps its old expiry
            call()
    assert get_lock(api, held.lock.lock_id) == longer.lock
    assert api.event_names(code=held.lock.code) == ["LOCKED", "LOCK_EXTENDED"]
    api.redeem(held.lock.code, held.lock.user_id, lock_token=longer.lock_token)


def test_an_expired_lock_no_longer_counts_for_its_user(api: Api) -> None:
    names, user = new_codes(6), unique("user")
    api.book(codes=names, lock_policy=books.LOCK_POLICY_OPTIONAL)
    *_, last = (api.lock(code, user) for code in names[:5])
    with refused("LOCK_LIMIT_EXCEEDED"):
        api.lock(names[5], user)
    api.unlock(last.lock_token)
    api.lock(last.lock.code, user, ttl_s=1)
    until(lambda: tried(lambda: api.lock(names[5], user)) == "OK")


def test_one_connection_is_enough_to_write_it_down(database_url: str, redis_url: str) -> None:
    settings = settings_for(
        database_url,
        redis_url,
        pool_min_size=1,
        pool_max_size=1,
        batches_in_flight=1,
        sweep_interval_ms=100,
        **lock_grace(GRACE_MS),
    )
    with ServerThread(settings) as server:
        api = Api(server.address)
        code = locking_code(api)
        api.lock(code, "ann", ttl_s=1)
        until(lambda: api.event_names(code=code) == ["LOCKED", "LOCK_EXPIRED"])
        api.close()


def wait_for_the_end(held: Held) -> None:
    """Until the time of the lock is over: its grace is not."""
    until(lambda: held.lock.expire_time.ToDatetime(UTC) < datetime.now(UTC))


def _gets_in(lock: Callable[[], object]) -> bool:
    outcome = tried(lock)
    assert outcome in {"OK", "CODE_LOCKED"}
    return outcome == "OK"
