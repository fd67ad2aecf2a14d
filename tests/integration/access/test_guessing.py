"""Guessing limits: what a miss is, against whom it counts, and who is refused then."""

# redis-py leaves the type of its keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.calls import ALL_OR_NOTHING, batch, item, outcomes_of, tried
from support.handler_server import failed, info_of, running
from support.lease_servers import keys_of
from support.limiters import (
    NO_LIMITS,
    THERE,
    Worker,
    end_user,
    from_metadata,
    peer,
    service,
    worker,
)
from support.redis_clients import looking_at
from support.service import (
    Api,
    ServerThread,
    books,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)
from support.time_zones import zone_at_noon
from support.token_clients import caller

from coupon_service.embedded import EmbeddedRedis
from coupon_service.errors import CodeNotFound
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.rpc.context import RequestContext

NewDatabase = Callable[[], AbstractContextManager[str]]

LIMIT = 3
USERS = replace(NO_LIMITS, end_users=f"{LIMIT}/hour")


@pytest.fixture
async def one(redis_url: str) -> AsyncIterator[Worker]:
    async with worker(redis_url) as it:
        yield it


@pytest.fixture(scope="module")
def counting(
    new_database: NewDatabase, redis_server_url: str
) -> Iterator[tuple[ServerThread, ServerThread]]:
    """Two servers on the same data that count the unknown codes of this machine's users."""
    with new_database() as database_url:
        settings = settings_for(
            database_url,
            redis_server_url,
            guess_limit_end_users=f"{LIMIT}/hour",
            guess_limit_peers="1000000/hour",  # set, so that this machine is counted
        )
        with ServerThread(settings) as first, ServerThread(settings) as second:
            yield first, second


@pytest.fixture(scope="module")
def api(counting: tuple[ServerThread, ServerThread]) -> Iterator[Api]:
    client = Api(counting[0].address)
    yield client
    client.close()


@pytest.fixture(scope="module")
def other(counting: tuple[ServerThread, ServerThread]) -> Iterator[Api]:
    client = Api(counting[1].address)
    yield client
    client.close()


def unknown() -> str:
    (code,) = new_codes(1)
    return code


def miss(api: Api, user_id: str, times: int = LIMIT) -> None:
    """As many unknown codes as this."""
    for _ in range(times):
        with refused("CODE_NOT_FOUND"):
            api.redeem(unknown(), user_id)


# --- what counts --------------------------------------------------------------------------------

BY_USER: dict[str, Callable[[Api, str, str], object]] = {
    "AssignCode": lambda api, code, user: api.assign(code, user),
    "RevokeAssignment": lambda api, code, user: api.revoke(code, user),
    "LockCode": lambda api, code, user: api.lock(code, user),
    "RedeemCode": lambda api, code, user: api.redeem(code, user),
}


@pytest.mark.parametrize("method", BY_USER)
def test_after_the_last_unknown_code_those_that_exist_are_refused_as_well(
    api: Api, method: str
) -> None:
    user_id, code = unique("user"), api.code()
    for _ in range(LIMIT):
        with refused("CODE_NOT_FOUND"):
            BY_USER[method](api, unknown(), user_id)
    for wanted in (code, unknown(), code):
        with refused("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) as it:
            BY_USER[method](api, wanted, user_id)
        assert it.retry_after_s is not None
        assert 0 < it.retry_after_s <= 3_600
        assert wanted not in str(it.error)
    assert api.redeem(code, unique("user")).redemption.code == code


def test_each_unknown_code_among_those_that_are_to_fit_counts(api: Api) -> None:
    user_id, code = unique("user"), api.code()
    answer = api.qualify(user_id, code, *new_codes(LIMIT - 1))
    assert answer.coupons[0].code == code
    answer = api.qualify(user_id, code, code.lower(), unknown())  # what is known never counts
    assert answer.coupons[0].code == code
    for named in ((code,), (unknown(),)):
        with refused("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED):
            api.qualify(user_id, *named)
    assert not api.qualify(user_id).coupons


def test_more_unknown_codes_at_once_than_the_limit_tell_nothing_of_the_others(api: Api) -> None:
    with refused("RATE_LIMITED"):
        api.qualify(unique("user"), api.code(), *new_codes(LIMIT + 1))


def test_a_user_who_is_refused_is_so_by_every_method_that_looks_a_code_up(api: Api) -> None:
    user_id, code = unique("user"), api.code()
    miss(api, user_id)
    for method in BY_USER.values():
        with refused("RATE_LIMITED"):
            method(api, code, user_id)
    with refused("RATE_LIMITED"):
        api.validate(code, user_id)
    with refused("RATE_LIMITED"):
        batch(api, [item(code, user_id)])
    book = api.book(codes=1)
    assert api.assign_random(book.book_id, user_id).assignment.user_id == user_id


def test_a_dry_run_that_finds_nothing_is_a_miss(api: Api) -> None:
    user_id, code = unique("user"), api.code()
    for _ in range(LIMIT):
        assert not api.validate(unknown(), user_id).valid
    with refused("RATE_LIMITED"):
        api.validate(code, user_id)


def test_a_dry_run_that_finds_a_code_is_none_whatever_it_says(api: Api) -> None:
    user_id, code = unique("user"), api.code()
    api.redeem(code, unique("user"))
    for _ in range(LIMIT + 2):
        assert not api.validate(code, user_id).valid


def test_a_mistyped_check_character_is_a_miss(api: Api) -> None:
    book = api.draft(code_format=books.CodeFormat(length=8, check_character=True))
    user_id = unique("user")
    misses: list[str] = []
    for last in "23456789":
        outcome = tried(lambda it=last: api.redeem(f"BBBBBBBB{it}", user_id, book_id=book.book_id))
        misses.append(outcome)
    assert misses[0] == "CODE_CHECKSUM_INVALID"
    assert misses[LIMIT:] == ["RATE_LIMITED"] * (8 - LIMIT)
    (code,) = new_codes(1)
    known = api.book(codes=[code])
    with refused("RATE_LIMITED"):
        api.redeem(code, user_id, book_id=known.book_id)


@pytest.mark.parametrize("typed", [" - ", "🎁", "A/B", "\u200b"], ids=ascii)
def test_what_cannot_be_a_code_is_no_guess(api: Api, typed: str) -> None:
    user_id, code = unique("user"), api.code()
    for _ in range(LIMIT):
        for method in BY_USER.values():
            with refused("CODE_NOT_FOUND"):
                method(api, typed, user_id)
        assert not api.validate(typed, user_id).valid
        batch(api, [item(typed, user_id), item(typed, user_id)])
    assert api.redeem(code, user_id).redemption.code == code


@pytest.mark.parametrize("whose", ["max_redemptions", "max_redemptions_per_user"])
def test_who_comes_too_often_in_a_month_has_not_guessed(api: Api, whose: str) -> None:
    month = books.PeriodLimits(period=books.PERIOD_MONTH, time_zone=zone_at_noon(), **{whose: 1})
    many = books.BookLimits(max_redemptions_per_code=0)
    user_id, code = unique("user"), api.code(period_limits=month, limits=many)
    api.redeem(code, user_id)
    reason = ("USER" if "user" in whose else "BOOK") + "_PERIOD_LIMIT_EXCEEDED"
    for _ in range(LIMIT + 2):
        with refused(reason):
            api.redeem(code, user_id)


def test_refusals_of_codes_that_exist_are_no_misses(api: Api) -> None:
    user_id, code = unique("user"), api.code()
    api.redeem(code, unique("user"))
    for _ in range(LIMIT + 2):
        with refused("CODE_ALREADY_REDEEMED"):
            api.redeem(code, user_id)


# --- batches ------------------------------------------------------------------------------------


def test_the_items_of_a_batch_count_each_for_its_user(api: Api) -> None:
    ann, ben, code = unique("user"), unique("user"), api.code()
    items = [item(unknown(), user_id) for user_id in [ann] * LIMIT + [ben]]
    answer = batch(api, items)
    assert outcomes_of(answer) == ["CODE_NOT_FOUND"] * (LIMIT + 1)
    with refused("RATE_LIMITED"):
        api.redeem(code, ann)
    api.redeem(code, ben)


def test_in_a_batch_only_the_items_of_who_has_guessed_are_refused(api: Api) -> None:
    ann, ben = unique("user"), unique("user")
    miss(api, ann)
    first, second = new_codes(2)
    api.book(codes=[first, second])
    answer = batch(api, [item(unknown(), ann), item(first, ben), item(second, ann)])
    assert outcomes_of(answer) == ["RATE_LIMITED", "OK", "RATE_LIMITED"]
    assert answer.redeemed_count == 1
    assert answer.results[1].redemption.code == first


def test_a_batch_of_all_or_nothing_is_refused_as_a_whole(api: Api) -> None:
    ann, code = unique("user"), api.code()
    miss(api, ann)
    with refused("RATE_LIMITED"):
        batch(api, [item(code, unique("user")), item(unknown(), ann)], ALL_OR_NOTHING)
    assert api.get_code(code).redemption_count == 0


def test_who_only_shares_a_batch_of_all_or_nothing_has_not_guessed(api: Api) -> None:
    ann, ben, code = unique("user"), unique("user"), api.code()
    for _ in range(LIMIT):
        batch(api, [item(unknown(), ann), item(code, ben)], ALL_OR_NOTHING)
    with refused("RATE_LIMITED"):
        api.redeem(code, ann)
    api.redeem(code, ben)


def test_bad_items_are_named_by_their_place_also_beside_those_of_who_has_guessed(api: Api) -> None:
    ann = unique("user")
    miss(api, ann)
    with refused("INVALID_ARGUMENT") as it:
        batch(api, [item(unknown(), ann), item("/" * 129, unique("user"))])
    assert it.fields == ["items[1].code"]


# --- against whom -------------------------------------------------------------------------------


def test_another_worker_learns_it_with_the_first_miss(api: Api, other: Api) -> None:
    user_id, code = unique("user"), api.code()
    miss(api, user_id)
    with refused("RATE_LIMITED"):
        other.redeem(unknown(), user_id)
    with refused("RATE_LIMITED"):
        other.redeem(code, user_id)


async def missed(guesses: GuessGuard, caller: RequestContext, *user_ids: str) -> int:
    """How many of the misses are answered as such."""
    count = 0
    for user_id in user_ids:
        if await guesses.missed(caller, {user_id: 1}) is None:
            count += 1
    return count


async def test_a_service_is_not_to_blame_for_its_customers(one: Worker) -> None:
    guesses, shop = one.guesses(USERS), service("shop")
    assert await missed(guesses, shop, *["ann"] * 5) == LIMIT
    assert await missed(guesses, shop, *[f"user-{n}" for n in range(20)]) == 20
    assert guesses.refusal(shop, "ann") is not None
    assert guesses.refusal(shop, "ben") is None
    assert guesses.refusal(shop, "") is None
    assert guesses.refusal(service("another shop"), "ann") is not None


async def test_a_service_has_a_limit_of_its_own_when_it_is_set(one: Worker) -> None:
    guesses = one.guesses(replace(NO_LIMITS, services="4/hour"))
    assert await missed(guesses, service("shop"), *[f"user-{n}" for n in range(9)]) == 4
    assert guesses.refusal(service("shop"), "nobody so far") is not None
    assert guesses.refusal(service("another shop"), "user-1") is None


async def test_an_end_user_is_one_and_the_same_by_token_and_by_name(one: Worker) -> None:
    guesses = one.guesses(USERS)
    assert await missed(guesses, end_user("ann"), "ann", "") == 2
    assert await missed(guesses, service("shop"), "ann", "ann") == 1
    assert guesses.refusal(end_user("ann"), "") is not None
    assert guesses.refusal(end_user("ben"), "") is None
    assert guesses.refusal(end_user("ben"), "ann") is None  # may not name her


async def test_users_of_two_businesses_may_have_the_same_name(one: Worker) -> None:
    guesses = one.guesses(USERS)
    assert await missed(guesses, service("shop", "acme"), *["ann"] * 4) == LIMIT
    assert await missed(guesses, service("shop", "acme/ann"), *["ann"] * 2) == 2
    assert guesses.refusal(end_user("ann", "acme"), "") is not None
    for business_id in ("globex", "", "acme/ann"):
        assert guesses.refusal(end_user("ann", business_id), "") is None


@pytest.mark.parametrize("ann", ["ann", "anonymous"])
def test_for_an_end_user_what_looks_unknown_counts_as_unknown(
    limiting_server: ServerThread, ann: str
) -> None:
    business = unique("business")
    with (
        caller(limiting_server.address, "admin") as admin,
        caller(limiting_server.address, "self", sub=ann, business=business) as client,
        caller(limiting_server.address, "redeemer", business=business) as shop,
    ):
        required = books.ASSIGNMENT_POLICY_REQUIRED
        foreign, own = new_codes(2)
        admin.book(codes=[foreign, own], business_id=business, assignment_policy=required)
        admin.assign(foreign, unique("user"), business_id=business)
        admin.assign(own, ann, business_id=business)
        outcomes = [tried(lambda: client.redeem(foreign, ann)) for _ in range(10)]
        assert outcomes == ["CODE_NOT_FOUND"] * 10
        for _ in range(2):
            assert tried(lambda: client.redeem(own, ann)) == "RATE_LIMITED"
            assert tried(lambda: shop.redeem(own, ann)) == "RATE_LIMITED"
        assert tried(lambda: shop.redeem(unknown(), unique("user"))) == "CODE_NOT_FOUND"


async def test_a_peer_counts_beside_the_user_that_it_names(one: Worker) -> None:
    guesses = one.guesses(replace(USERS, peers="4/hour"))
    assert await missed(guesses, peer(THERE), *["ann"] * 4) == 3
    assert await missed(guesses, peer(THERE), *["ben"] * 2) == 0
    assert guesses.refusal(peer(THERE), "carl") is not None
    assert guesses.refusal(service("shop", ""), "ann") is not None
    assert guesses.refusal(service("shop", ""), "ben") is None


async def test_each_of_several_limits_holds(one: Worker) -> None:
    guesses = one.guesses(replace(NO_LIMITS, end_users="5/minute;3/day"))
    assert await missed(guesses, end_user("ann"), *[""] * 9) == 3
    refusal = guesses.refusal(end_user("ann"), "")
    assert refusal is not None
    assert int(refusal.metadata["retry_after_ms"]) > 3_600_000


async def test_the_time_ends(one: Worker) -> None:
    guesses = one.guesses(replace(NO_LIMITS, end_users="1/second"))
    refusal = None
    while refusal is None:  # its window may have ended before it is asked for
        await guesses.missed(end_user("ann"), {"": 1})
        refusal = guesses.refusal(end_user("ann"), "")
    await asyncio.sleep(int(refusal.metadata["retry_after_ms"]) / 1000 + 0.01)
    assert guesses.refusal(end_user("ann"), "") is None
    assert await guesses.missed(end_user("ann"), {"": 1}) is None


async def test_an_end_user_looks_up_no_more_codes_at_a_time_than_may_be_missed(one: Worker) -> None:
    looking, held = 0, asyncio.Event()

    async def behavior(request: Any, context: Any) -> Any:
        nonlocal looking
        looking += 1
        await held.wait()
        return redemptions.RedeemCodeResponse()

    async with running(behavior, from_metadata, guesses=one.guesses(USERS)) as run:

        def redeem(kind: str) -> Any:
            request = redemptions.RedeemCodeRequest(code="C", user_id="ann")
            return run.redemptions.RedeemCode(request, timeout=30, metadata=((kind, "ann"),))

        calls = [asyncio.ensure_future(redeem("end-user")) for _ in range(20)]
        done, waiting = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        while len(waiting) > LIMIT:
            done, waiting = await asyncio.wait(calls, timeout=0.05)
        assert looking == LIMIT
        code, _, status = await failed(next(iter(done)))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(status).reason == "RATE_LIMITED"
        trusted = [asyncio.ensure_future(redeem("service")) for _ in range(20)]
        while looking < LIMIT + 20:
            await asyncio.sleep(0.01)
        held.set()
        await asyncio.gather(*waiting, *trusted)
        await redeem("end-user")


# --- what is told, and what happens without Redis -----------------------------------------------


async def test_each_limit_that_is_reached_is_one_alarm_and_one_line(redis_url: str) -> None:
    async with worker(redis_url) as one, worker(redis_url) as two:
        first, second = one.guesses(USERS), two.guesses(USERS)
        await missed(first, service("shop"), "ann", "ann")
        assert one.events.alarms == []
        await missed(second, service("shop"), *["ann"] * 4)
        await missed(first, service("shop"), *["ann"] * 4)
        assert (one.events.alarms, two.events.alarms) == ([], ["user"])
        (line,) = two.events.log.entries
    assert line.pop("log_level") == "warning"
    assert line == {
        "event": "guess limit reached",
        "kind": "user",
        "who": "acme/ann",
        "limit": "3 per 1 hour",
        "caller": "shop",
        "peer": THERE,
    }


def test_no_line_of_the_log_has_the_code(
    api: Api, counting: tuple[ServerThread, ServerThread], capfd: pytest.CaptureFixture[str]
) -> None:
    user_id = unique("user")
    guesses = new_codes(LIMIT)
    for code in guesses:
        with refused("CODE_NOT_FOUND"):
            api.redeem(code, user_id)
    output = capfd.readouterr().out
    assert "guess limit reached" in output
    assert not any(code in output for code in guesses)
    registry = counting[0].registry
    assert (registry.get_sample_value("coupon_guess_alarms_total", {"kind": "user"}) or 0) >= 1


async def test_without_redis_each_worker_counts_for_itself(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder / "redis-of-guesses", durable=False) as redis:
        async with worker(redis.url, timeout_ms=50) as one, worker(redis.url) as two:
            redis.stop()
            guesses = one.guesses(USERS)
            assert await missed(guesses, end_user("ann"), *[""] * 9) == LIMIT
            assert guesses.refusal(end_user("ann"), "") is not None
            assert one.events.alarms == ["user"]
            assert await missed(two.guesses(USERS), end_user("ann"), *[""] * 9) == LIMIT


async def test_only_a_miss_is_counted_in_redis(one: Worker, redis_url: str) -> None:
    async def behavior(request: Any, context: Any) -> Any:
        if request.code == "NONE":
            raise CodeNotFound
        return redemptions.RedeemCodeResponse()

    async with running(behavior, from_metadata, guesses=one.guesses(USERS)) as run:

        def redeem(code: str) -> Any:
            request = redemptions.RedeemCodeRequest(code=code, user_id="ann")
            return run.redemptions.RedeemCode(request, timeout=30, metadata=(("end-user", "ann"),))

        async with looking_at(redis_url) as redis:
            await redeem("ONE")
            assert await keys_of(redis) == []
            assert (await failed(redeem("NONE")))[0] is grpc.StatusCode.NOT_FOUND
            assert len(await keys_of(redis)) == 1
