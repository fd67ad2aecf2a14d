"""Rate limits: who is counted, together with whom and for how long, with Redis and without."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import grpc
import pytest
from google.rpc.error_details_pb2 import RetryInfo
from support.calls import tried
from support.handler_server import failed, info_of, running
from support.limiters import (
    HERE,
    NO_LIMITS,
    THERE,
    Worker,
    end_user,
    from_metadata,
    peer,
    service,
    worker,
)
from support.service import Api, ServerThread, redemptions, refused, settings_for, unique
from support.token_clients import caller

from coupon_service.embedded import EmbeddedRedis
from coupon_service.errors import RateLimited
from coupon_service.ratelimit.callers import network_of
from coupon_service.ratelimit.limiter import RateClass, RateLimiter
from coupon_service.rpc.context import RequestContext
from coupon_service.v1 import redemption_service_pb2 as pb

USERS = replace(NO_LIMITS, end_users="3/hour")
TILL = RateClass.TILL


class NewDatabase(Protocol):
    def __call__(self) -> AbstractContextManager[str]: ...


@pytest.fixture
async def one(redis_url: str) -> AsyncIterator[Worker]:
    async with worker(redis_url) as it:
        yield it


async def admitted(limiter: RateLimiter, caller: RequestContext, *calls: RateClass) -> int:
    """How many of the calls pass."""
    count = 0
    for rate_class in calls:
        try:
            await limiter.admit(rate_class, caller)
        except RateLimited:
            continue
        count += 1
    return count


# --- what is counted ----------------------------------------------------------------------------


async def test_as_many_calls_pass_as_the_limit_says(one: Worker) -> None:
    limiter = one.limiter(USERS)
    assert limiter.limits(end_user("ann"))
    assert await admitted(limiter, end_user("ann"), *[TILL] * 5) == 3


async def test_calls_at_the_same_time_are_counted_exactly(one: Worker) -> None:
    limiter = one.limiter(USERS)
    passed = await asyncio.gather(*(admitted(limiter, end_user("ann"), TILL) for _ in range(50)))
    assert sum(passed) == 3


async def test_a_caller_who_gives_up_leaves_the_others_who_asked_with_it_their_answers(
    one: Worker,
) -> None:
    limiter = one.limiter(USERS)
    calls = [asyncio.ensure_future(limiter.admit(TILL, end_user("ann"))) for _ in range(5)]
    await asyncio.sleep(0)
    calls[1].cancel()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(it) for it in answers] == [
        type(None),
        asyncio.CancelledError,
        type(None),
        RateLimited,
        RateLimited,
    ]


async def test_workers_count_together(redis_url: str) -> None:
    async with worker(redis_url) as one, worker(redis_url) as two:
        assert await admitted(one.limiter(USERS), end_user("ann"), TILL, TILL) == 2
        assert await admitted(two.limiter(USERS), end_user("ann"), TILL, TILL) == 1


async def test_callers_are_counted_apart(one: Worker) -> None:
    limiter = one.limiter(replace(USERS, services="3/hour"))
    assert await admitted(limiter, end_user("ann"), *[TILL] * 4) == 3
    assert await admitted(limiter, end_user("ben"), *[TILL] * 4) == 3
    assert await admitted(limiter, service("ann"), *[TILL] * 4) == 3


async def test_reads_changes_and_the_till_are_counted_apart_and_each_together(one: Worker) -> None:
    limiter = one.limiter(USERS)
    assert await admitted(limiter, end_user("ann"), *[TILL] * 4) == 3
    assert await admitted(limiter, end_user("ann"), *[RateClass.READS] * 4) == 3
    assert await admitted(limiter, end_user("ann"), *[RateClass.CHANGES] * 4) == 3


async def test_a_refusal_says_when_the_window_ends_and_then_it_does(one: Worker) -> None:
    limiter = one.limiter(replace(USERS, end_users="1/second"))

    async def until_refused() -> None:
        while True:  # the window of the first may have ended before the second
            await limiter.admit(TILL, end_user("ann"))

    with pytest.raises(RateLimited) as caught:
        await until_refused()
    left_ms = int(caught.value.metadata["retry_after_ms"])
    assert 0 < left_ms <= 1_000
    await asyncio.sleep(left_ms / 1000 + 0.01)
    await limiter.admit(TILL, end_user("ann"))


@pytest.mark.parametrize("limits", ["3/minute;9/hour", "9/minute;3/hour"])
async def test_of_several_limits_each_holds(one: Worker, limits: str) -> None:
    limiter = one.limiter(replace(USERS, end_users=limits))
    assert await admitted(limiter, end_user("ann"), *[TILL] * 9) == 3


async def test_who_has_been_refused_costs_redis_nothing_until_the_window_ends(
    server_folder: Path,
) -> None:
    with EmbeddedRedis(server_folder / "redis-of-limits", durable=False) as redis:
        async with worker(redis.url) as one:
            limiter = one.limiter(USERS)
            assert await admitted(limiter, end_user("ann"), *[TILL] * 4) == 3
            redis.stop()
            assert await admitted(limiter, end_user("ann"), *[TILL] * 4) == 0
            assert one.events.unchecked == 0


async def test_while_redis_does_not_answer_calls_pass_and_are_reported(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder / "redis-of-limits", durable=False) as redis:
        async with worker(redis.url, timeout_ms=50) as one:
            limiter = one.limiter(USERS)
            redis.pause()
            assert await admitted(limiter, end_user("ann"), *[TILL] * 9) == 9
            assert one.events.unchecked == 9
            redis.resume()
            redis.stop()
            assert await admitted(limiter, end_user("ann"), *[TILL] * 9) == 9
            assert one.events.unchecked == 18


async def test_of_many_calls_few_wait_for_a_redis_that_is_silent(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder / "redis-of-limits", durable=False) as redis:
        async with worker(redis.url, timeout_ms=500) as one:
            limiter = one.limiter(USERS)
            redis.pause()
            began = monotonic()
            assert await admitted(limiter, end_user("ann"), TILL) == 1
            waited_s = monotonic() - began
            assert await admitted(limiter, end_user("ann"), *[TILL] * 20) == 20
            assert monotonic() - began < 10 * waited_s  # if each waited: 21 times
            redis.resume()


async def test_a_redis_that_is_back_is_asked_again(server_folder: Path) -> None:
    with EmbeddedRedis(server_folder / "redis-of-limits", durable=False) as redis:
        async with worker(redis.url, timeout_ms=500) as one:
            limiter = one.limiter(USERS)
            redis.stop()
            assert await admitted(limiter, end_user("ann"), TILL) == 1
            redis.start()
            while await admitted(limiter, end_user("ann"), *[TILL] * 9) == 9:
                await asyncio.sleep(0.1)


# --- who is counted -----------------------------------------------------------------------------


async def test_who_has_no_limit_is_not_counted(one: Worker) -> None:
    assert not one.limiter(USERS).limits(service("till"))
    assert not one.limiter(USERS).limits(peer(THERE))
    assert one.limiter(replace(NO_LIMITS, services="1/day")).limits(service("till"))


async def test_a_peer_of_this_machine_has_a_limit_only_when_it_is_set_for_it(one: Worker) -> None:
    peers = replace(NO_LIMITS, peers="3/hour")
    for address in (HERE, "ipv6:[::1]:1", "ipv6:%5B::1%5D:1", "ipv6:[::ffff:127.0.0.1]:1", "unix:"):
        assert not one.limiter(peers).limits(peer(address)), address
        assert one.limiter(replace(peers, loopback=True)).limits(peer(address)), address
    assert one.limiter(peers).limits(peer(THERE))


async def test_a_peer_is_the_same_whatever_its_port(one: Worker) -> None:
    limiter = one.limiter(replace(NO_LIMITS, peers="3/hour"))
    for port in (1, 2, 3):
        await limiter.admit(TILL, peer(f"ipv4:192.0.2.7:{port}"))
    assert await admitted(limiter, peer("ipv4:192.0.2.7:4"), TILL) == 0
    assert await admitted(limiter, peer("ipv4:192.0.2.8:4"), TILL) == 1


@pytest.mark.parametrize(
    ("peer_of_grpc", "network"),
    [
        ("ipv4:192.0.2.7:50000", "192.0.2.7"),
        ("ipv6:[2001:db8:1:2:3:4:5:6]:50000", "2001:db8:1:2::/64"),
        ("ipv6:%5B2001:db8:1:2:ffff::9%5D:50000", "2001:db8:1:2::/64"),
        ("ipv6:[2001:db8:1:3::1]:50000", "2001:db8:1:3::/64"),
        ("ipv6:[::ffff:192.0.2.7]:50000", "192.0.2.7"),
        ("ipv6:[fe80::1%25eth0]:50000", "fe80::/64"),
        ("ipv4:127.1.2.3:50000", ""),
        ("unix:/run/coupon", ""),
        ("vsock:3:4", "vsock:3:4"),
    ],
)
def test_an_address_stands_for_its_network(peer_of_grpc: str, network: str) -> None:
    assert network_of(peer_of_grpc) == network


# --- the service --------------------------------------------------------------------------------


async def test_the_answer_has_the_reason_and_the_time(one: Worker) -> None:
    async def behavior(request: Any, context: Any) -> pb.RedeemCodeResponse:
        return pb.RedeemCodeResponse()

    limiter = one.limiter(replace(NO_LIMITS, end_users="1/minute"))
    async with running(behavior, from_metadata, limiter) as run:

        def redeem(**who: str) -> Any:
            metadata = tuple((key.replace("_", "-"), value) for key, value in who.items())
            return run.redemptions.RedeemCode(pb.RedeemCodeRequest(), timeout=5, metadata=metadata)

        await redeem(end_user="ann")
        code, _, status = await failed(redeem(end_user="ann"))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert info_of(status).reason == "RATE_LIMITED"
        assert info_of(status).metadata["method_class"] == "till"
        retry = RetryInfo()
        assert status.details[1].Unpack(retry)
        assert 0 < retry.retry_delay.ToTimedelta().total_seconds() <= 60
        for _ in range(3):
            await redeem(service="till")
            await redeem()


def test_an_end_user_makes_a_hundred_calls_a_minute_and_a_service_any_number(
    limiting_server: ServerThread,
) -> None:
    business, ann = unique("business"), unique("user")
    request = redemptions.ListRedemptionsRequest(user_id=ann)
    with (
        caller(limiting_server.address, "self", sub=ann, business=business) as client,
        caller(limiting_server.address, "redeemer", business=business) as shop,
    ):
        outcomes = [tried(lambda: client.redemptions.ListRedemptions(request)) for _ in range(110)]
        assert outcomes == ["OK"] * 100 + ["RATE_LIMITED"] * 10
        for _ in range(110):
            shop.redemptions.ListRedemptions(request)


def test_peers_of_this_machine_are_limited_by_a_server_that_is_told_to(
    new_database: NewDatabase, redis_url: str
) -> None:
    with new_database() as database_url:
        settings = settings_for(database_url, redis_url, rate_limit_peers="5/hour")
        with ServerThread(settings) as one, ServerThread(settings) as two:
            first, second = Api(one.address), Api(two.address)
            for client in (first, second, first, second, first):
                client.draft()
            with refused("RATE_LIMITED", grpc.StatusCode.RESOURCE_EXHAUSTED) as it:
                second.draft()
            assert it.retry_after_s is not None
            assert 0 < it.retry_after_s <= 3_600
            assert second.events(code=unique("C")) == []  # reads are counted apart
            first.close()
            second.close()


def test_nobody_on_this_machine_is_limited_unless_it_is_said(api: Api) -> None:
    for _ in range(150):
        assert api.events(code=unique("C")) == []
