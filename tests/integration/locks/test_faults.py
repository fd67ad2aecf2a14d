"""Redis goes away, or forgets: what is refused, what goes on, and that the limits hold."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import cast

import grpc
import pytest
from grpc import StatusCode
from redis import Redis
from support.calls import (
    ALL_OR_NOTHING,
    batch,
    extend,
    get_lock,
    item,
    locking_code,
    locks_of,
    outcomes_of,
    reasons_of,
    tried,
)
from support.service import (
    Api,
    ServerThread,
    all_at_once,
    books,
    codes,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.waiting import until

from coupon_service.embedded import EmbeddedRedis

OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
NewDatabase = Callable[[], AbstractContextManager[str]]


@pytest.fixture(scope="module")
def redis_server(server_folder: Path) -> Iterator[EmbeddedRedis]:
    with EmbeddedRedis(server_folder / "redis-that-fails", durable=False) as server:
        yield server


@pytest.fixture(scope="module")
def redis_api(new_database: NewDatabase, redis_server: EmbeddedRedis) -> Iterator[Api]:
    """A client of a server whose Redis is `redis_server`."""
    with new_database() as database_url:
        with ServerThread(settings_for(database_url, redis_server.url)) as server:
            client = Api(server.address)
            yield client
            client.close()


@pytest.fixture
def api(redis_api: Api, redis_server: EmbeddedRedis) -> Api:
    """The same, with Redis running at first."""
    redis_server.start()
    until(lambda: locks_are_there(redis_api))
    return redis_api


def locks_are_there(api: Api) -> bool:
    return tried(lambda: locks_of(api, user_id="anybody")) == "OK"


def flush(server: EmbeddedRedis) -> None:
    """All locks are forgotten."""
    with Redis.from_url(server.url) as client:
        client.flushall()


def test_without_redis_there_are_no_locks_to_be_had(api: Api, redis_server: EmbeddedRedis) -> None:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    held = api.lock(code, user)
    redis_server.kill()
    for call in (
        lambda: api.lock(code, unique("another")),
        lambda: api.lock(code, user),
        lambda: extend(api, held.lock_token),
        lambda: locks_of(api, user_id=user),
        lambda: locks_of(api, book_id=held.lock.book_id),
    ):
        with refused("LOCKS_UNAVAILABLE", StatusCode.UNAVAILABLE) as it:
            call()
        assert it.retry_after_s
    # What is written down can be read, and who is locked out is not told.
    assert get_lock(api, held.lock.lock_id) == held.lock
    assert api.get_code(code).effective_state == codes.COUPON_CODE_STATE_AVAILABLE
    redis_server.start()
    until(lambda: locks_are_there(api))
    api.lock(api.code(lock_policy=OPTIONAL), unique("user"))


def test_a_lock_that_is_ended_without_redis_is_worth_nothing(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, user = api.code(lock_policy=REQUIRED), unique("user")
    held = api.lock(code, user)
    redis_server.kill()
    assert api.unlock(held.lock_token).lock.state == redemptions.LOCK_STATE_RELEASED
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)


def test_a_lock_of_whoever_gives_the_code_away_is_seen_and_ended_without_redis(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, giver, receiver = api.code(lock_policy=OPTIONAL), unique("giver"), unique("receiver")
    api.assign(code, giver)
    held = api.lock(code, giver)
    redis_server.kill()
    with refused("CODE_LOCKED"):
        api.transfer(code, giver, receiver)
    api.transfer(code, giver, receiver, lock_token=held.lock_token)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_RELEASED
    with refused("LOCK_EXPIRED"):
        api.redeem(code, giver, lock_token=held.lock_token)


def test_a_lock_that_redis_has_lost_goes_over_while_nobody_else_has_the_code(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, guest, user = api.code(lock_policy=REQUIRED), unique("guest"), unique("user")
    old = api.lock(code, guest)
    flush(redis_server)
    new = api.lock(code, user, lock_token=old.lock_token)
    assert new.lock.expire_time == old.lock.expire_time
    flush(redis_server)
    with refused("LOCK_EXPIRED"):
        api.redeem(code, guest, lock_token=old.lock_token)
    api.redeem(code, user, lock_token=new.lock_token)
    code = api.code(lock_policy=REQUIRED)
    old = api.lock(code, guest)
    flush(redis_server)
    api.lock(code, unique("another"))
    with refused("CODE_LOCKED"):
        api.lock(code, user, lock_token=old.lock_token)
    redis_server.kill()
    with refused("LOCKS_UNAVAILABLE"):
        api.lock(code, user, lock_token=old.lock_token)


def test_a_lock_that_was_ended_stays_so_beside_its_token_on_another_code(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, other = new_codes(2)
    api.book(codes=[code, other], lock_policy=REQUIRED)
    user = unique("user")
    token = api.lock(code, user).lock_token
    api.unlock(token)
    flush(redis_server)
    items = [item(code, user, lock_token=token), item(other, user, lock_token=token)]
    assert outcomes_of(batch(api, items)) == ["LOCK_EXPIRED", "LOCK_TOKEN_MISMATCH"]


def test_without_redis_a_token_is_enough_to_redeem(api: Api, redis_server: EmbeddedRedis) -> None:
    limits = books.BookLimits(max_redemptions_per_code=3)
    code, user = api.code(lock_policy=REQUIRED, limits=limits), unique("user")
    held = api.lock(code, user)
    of_another = api.lock(code, unique("another"))
    redis_server.kill()
    assert api.validate(code, user, lock_token=held.lock_token).valid
    redeemed = api.redeem(code, user, lock_token=held.lock_token)
    assert redeemed.redemption.lock_id == held.lock.lock_id
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED
    with refused("LOCK_EXPIRED"):  # its fence is used up
        api.redeem(code, user, lock_token=held.lock_token)
    with refused("LOCK_TOKEN_MISMATCH"):
        api.redeem(code, user, lock_token=of_another.lock_token)
    api.rollback(redeemed.redemption.redemption_id)


def test_without_redis_nobody_redeems_past_a_lock_that_cannot_be_seen(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    (code,), (plain,), (must,) = new_codes(1), new_codes(1), new_codes(1)
    api.book(codes=[code], lock_policy=OPTIONAL)
    api.book(codes=[plain])
    api.book(codes=[must], lock_policy=REQUIRED)
    redis_server.kill()
    with refused("LOCKS_UNAVAILABLE", StatusCode.UNAVAILABLE):
        api.redeem(code, "ann")
    with refused("LOCK_REQUIRED"):
        api.redeem(must, "ann")
    assert reasons_of(api.validate(code, "ann")) == ["LOCKS_UNAVAILABLE"]
    assert reasons_of(api.validate(must, "ann"))[0] == "LOCK_REQUIRED"
    answer = batch(api, [item(it, "ann") for it in (plain, code, must)], ALL_OR_NOTHING)
    assert outcomes_of(answer) == ["LOCK_REQUIRED", "LOCK_REQUIRED", "LOCK_REQUIRED"]
    answer = batch(api, [item(it, "ann") for it in (plain, code)], ALL_OR_NOTHING)
    assert outcomes_of(answer) == ["LOCKS_UNAVAILABLE"] * 2
    assert [it.error.metadata.get("item") for it in answer.results] == ["1", None]
    assert api.get_code(plain).redemption_count == 0
    # Books without locking do not depend on it.
    assert api.validate(plain, "ann").valid
    answer = batch(api, [item(it, "ann") for it in (plain, code, must)])
    assert outcomes_of(answer) == ["OK", "LOCKS_UNAVAILABLE", "LOCK_REQUIRED"]


def test_a_token_outlives_the_memory_of_redis(api: Api, redis_server: EmbeddedRedis) -> None:
    code, user = api.code(lock_policy=REQUIRED), unique("user")
    held = api.lock(code, user)
    flush(redis_server)
    assert api.validate(code, user, lock_token=held.lock_token).valid
    api.redeem(code, user, lock_token=held.lock_token)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_REDEEMED


def test_a_lock_that_redis_lost_is_extended_while_nobody_else_has_the_code(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, user = locking_code(api), unique("user")
    lost = api.lock(code, user, ttl_s=30)
    flush(redis_server)
    extended = extend(api, lost.lock_token, ttl_s=300)
    assert extended.lock.lock_id == lost.lock.lock_id
    assert extended.lock.expire_time.seconds > lost.lock.expire_time.seconds
    with refused("CODE_LOCKED"):
        api.lock(code, unique("another"))
    flush(redis_server)
    held = api.lock(code, unique("another"))
    for _ in range(2):  # and asking does not take the permit from the one who has it
        with refused("CODE_LOCKED"):
            extend(api, extended.lock_token)
    api.unlock(held.lock_token)
    api.redeem(code, user, lock_token=extended.lock_token)


def test_a_lock_that_was_ended_without_redis_is_not_in_its_users_way(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    limits = books.BookLimits(max_redemptions_per_code=2)
    names, user = new_codes(2), unique("user")
    api.book(codes=names, lock_policy=OPTIONAL, limits=limits)
    held = [api.lock(code, user) for code in names]
    with Redis.from_url(redis_server.url) as client:
        permits = {key: client.dump(key) for key in client.keys("*")}  # as if it had been away
    api.unlock(held[0].lock_token)
    api.redeem(names[1], user, lock_token=held[1].lock_token)
    with Redis.from_url(redis_server.url) as client:
        client.flushall()
        for key, value in permits.items():
            client.restore(key, 60_000, cast("bytes", value))
    for code, before in zip(names, held, strict=True):
        again = api.lock(code, user)
        assert again.lock.lock_id != before.lock.lock_id
        assert again.lock.state == redemptions.LOCK_STATE_HELD
        api.redeem(code, user, lock_token=again.lock_token)


def test_a_lock_that_redis_lost_can_be_acquired_anew(api: Api, redis_server: EmbeddedRedis) -> None:
    code, user = locking_code(api), unique("user")
    lost = api.lock(code, user)
    flush(redis_server)
    anew = api.lock(code, user)
    assert anew.lock.fence > lost.lock.fence
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=lost.lock_token)
    api.redeem(code, user, lock_token=anew.lock_token)


def test_a_token_is_good_until_someone_else_holds_the_code(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code, old, new = api.code(lock_policy=OPTIONAL), unique("old"), unique("new")
    lost = api.lock(code, old)
    flush(redis_server)
    held = api.lock(code, new)
    assert reasons_of(api.validate(code, old, lock_token=lost.lock_token)) == ["CODE_LOCKED"]
    for _ in range(2):  # and asking does not take the permit from the one who has it
        with refused("CODE_LOCKED"):
            api.redeem(code, old, lock_token=lost.lock_token)
    api.unlock(held.lock_token)
    redeemed = api.redeem(code, old, lock_token=lost.lock_token).redemption
    api.rollback(redeemed.redemption_id)
    again = api.lock(code, new)
    api.redeem(code, new, lock_token=again.lock_token)
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(code, old, lock_token=lost.lock_token)


def test_no_more_is_redeemed_than_the_code_allows_whatever_redis_forgets(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code = api.code(lock_policy=REQUIRED, limits=books.BookLimits(max_redemptions_per_code=2))
    held: list[redemptions.LockCodeResponse] = []
    for _ in range(4):
        held += [api.lock(code, unique("user")) for _ in range(2)]
        flush(redis_server)
    calls = [
        functools.partial(api.redeem, code, it.lock.user_id, lock_token=it.lock_token)
        for it in held
    ]
    all_at_once(calls)
    for call in calls:  # those who were in each other's way, one after the other
        with suppress(grpc.RpcError):
            call()
    assert api.get_code(code).redemption_count == 2
    assert api.event_names(code=code).count("REDEEMED") == 2


def test_an_older_lock_than_the_one_that_was_used_is_refused(
    api: Api, redis_server: EmbeddedRedis
) -> None:
    code = api.code(lock_policy=OPTIONAL, limits=books.BookLimits(max_redemptions_per_code=3))
    user = unique("user")
    older = api.lock(code, user)
    flush(redis_server)
    newer = api.lock(code, user)
    assert newer.lock.lock_id != older.lock.lock_id
    api.redeem(code, user, lock_token=newer.lock_token)
    flush(redis_server)
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=older.lock_token)
    assert api.get_code(code).redemption_count == 1
