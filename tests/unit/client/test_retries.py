"""How calls of both clients go on after errors, and what each try carries."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any, Protocol

import grpc
import pytest
from support.scripted_server import Script, scripted_server
from support.waiting import until

from coupon_service import errors as of_service
from coupon_service.client import AsyncCouponClient, ClientSettings, CouponClient, errors
from coupon_service.v1 import redemption_service_pb2 as pb

FAST = ClientSettings(timeout_s=60, try_timeout_s=30, backoff_min_s=0.01, backoff_max_s=0.05)


class Redeem(Protocol):
    """Redeems a code with a new client, of threads or of an event loop."""

    def __call__(
        self,
        address: str,
        settings: ClientSettings = FAST,
        token: Any = "",
        times: int = 1,
        **fields: Any,
    ) -> pb.RedeemCodeResponse: ...


def redeem_blocking(
    address: str, settings: ClientSettings = FAST, token: Any = "", times: int = 1, **fields: Any
) -> pb.RedeemCodeResponse:
    with CouponClient(address, token=token, settings=settings) as client:
        return [client.redeem_code("CODE", "ann", **fields) for _ in range(times)][-1]


def redeem_asynchronous(
    address: str, settings: ClientSettings = FAST, token: Any = "", times: int = 1, **fields: Any
) -> pb.RedeemCodeResponse:
    async def redeem() -> pb.RedeemCodeResponse:
        async with AsyncCouponClient(address, token=token, settings=settings) as client:
            return [await client.redeem_code("CODE", "ann", **fields) for _ in range(times)][-1]

    return asyncio.run(redeem())


@pytest.fixture(params=[redeem_blocking, redeem_asynchronous])
def redeem(request: pytest.FixtureRequest) -> Redeem:
    return request.param


def request_ids(script: Script) -> set[str]:
    return {request.request_id for request in script.requests}


def test_one_request_id_is_kept_over_all_tries(redeem: Redeem) -> None:
    outcomes = (
        of_service.Contention(),
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        of_service.Overloaded(retry_after_ms=20),
    )
    with scripted_server(*outcomes) as (address, script):
        assert redeem(address).redemption.code == "CODE"
    assert len(script.requests) == 5
    (request_id,) = request_ids(script)
    assert len(request_id) >= 16


def test_each_call_has_another_request_id_unless_it_is_given(redeem: Redeem) -> None:
    with scripted_server() as (address, script):
        redeem(address, times=3)
        assert len(request_ids(script)) == 3
        redeem(address, times=3, request_id="the order")
    assert [it.request_id for it in script.requests[3:]] == ["the order"] * 3


def test_a_refusal_is_raised_after_one_try(redeem: Redeem) -> None:
    refusal = of_service.CodeLocked(retry_after_ms=1_500)
    with scripted_server(refusal) as (address, script):
        with pytest.raises(errors.CodeLocked) as caught:
            redeem(address, request_id="the order")
    assert len(script.requests) == 1
    assert caught.value.retry_after_ms == 1_500
    assert caught.value.request_id == "the order"
    assert not caught.value.outcome_unknown


def test_a_try_without_an_answer_is_followed_by_another(redeem: Redeem) -> None:
    settings = ClientSettings(timeout_s=60, try_timeout_s=0.2, backoff_min_s=0.01)
    with scripted_server(1.0) as (address, script):
        assert redeem(address, settings).redemption.code == "CODE"
    assert len(script.requests) >= 2
    assert len(request_ids(script)) == 1


def test_a_call_ends_at_its_deadline_with_an_unknown_outcome(redeem: Redeem) -> None:
    settings = ClientSettings(timeout_s=0.5, try_timeout_s=0.2, backoff_min_s=0.01)
    with scripted_server(*[1.0] * 5) as (address, script):
        with pytest.raises(errors.DeadlineExceeded) as caught:
            redeem(address, settings, request_id="the order")
    assert caught.value.outcome_unknown
    assert len(script.requests) <= 3


def test_the_service_says_when_to_come_back(redeem: Redeem) -> None:
    with scripted_server(of_service.RateLimited(retry_after_ms=300)) as (address, script):
        redeem(address)
    first_s, second_s = script.times_s
    assert second_s - first_s >= 0.3


def test_nothing_is_repeated_without_budget(redeem: Redeem) -> None:
    settings = ClientSettings(timeout_s=60, backoff_min_s=0.01, retry_budget=2)
    with scripted_server(*[grpc.StatusCode.UNAVAILABLE] * 5) as (address, script):
        with pytest.raises(errors.Unavailable):
            redeem(address, settings)
    assert len(script.requests) == 3


def test_a_token_is_asked_for_with_each_try(redeem: Redeem) -> None:
    numbers = itertools.count(1)
    with scripted_server(grpc.StatusCode.UNAVAILABLE) as (address, script):
        redeem(address, token=lambda: f"token {next(numbers)}")
        redeem(address, token="constant")
        redeem(address)
    assert script.tokens == ["Bearer token 1", "Bearer token 2", "Bearer constant", ""]


async def test_a_token_may_be_awaited() -> None:
    async def token() -> str:
        await asyncio.sleep(0)
        return "awaited"

    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, token=token, settings=FAST) as client:
            await client.redeem_code("CODE", "ann")
    assert script.tokens == ["Bearer awaited"]


@pytest.mark.parametrize("connections", [1, 3])
def test_calls_take_turns_on_connections(redeem: Redeem, connections: int) -> None:
    settings = ClientSettings(connections=connections)
    with scripted_server() as (address, script):
        redeem(address, settings, times=6)
    assert len(script.peers) == connections


def test_all_addresses_of_a_target_are_used() -> None:
    settings = ClientSettings(connections=1)
    with scripted_server() as (first, one), scripted_server() as (second, other):
        with CouponClient(f"ipv4:{first},{second}", settings=settings) as client:
            until(lambda: client.redeem_code("CODE", "ann") and one.requests and other.requests)


def test_a_deadline_of_its_own_leaves_the_client_as_it_is() -> None:
    settings = ClientSettings(timeout_s=60, backoff_min_s=0.01)
    with scripted_server(1.0, 1.0) as (address, _):
        with CouponClient(address, settings=settings) as client:
            with pytest.raises(errors.DeadlineExceeded):
                client.within(0.2).redeem_code("CODE", "ann")
            client.redeem_code("CODE", "ann")


async def test_a_task_that_is_cancelled_stops_trying() -> None:
    with scripted_server(*[grpc.StatusCode.UNAVAILABLE] * 1_000) as (address, script):
        async with AsyncCouponClient(address, settings=FAST) as client:
            task = asyncio.create_task(client.redeem_code("CODE", "ann"))
            while len(script.requests) < 3:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            tries = len(script.requests)
            await asyncio.sleep(0.3)
    assert len(script.requests) <= tries + 1, "it may have sent one"


def test_the_client_waits_for_a_service_that_is_not_there_yet(
    redeem: Redeem, unused_tcp_port: int
) -> None:
    settings = ClientSettings(timeout_s=0.5, try_timeout_s=0.5)
    with pytest.raises(errors.DeadlineExceeded):
        redeem(f"127.0.0.1:{unused_tcp_port}", settings)
    failing = ClientSettings(timeout_s=60, retry_budget=2, wait_for_ready=False)
    with pytest.raises(errors.Unavailable):
        redeem(f"127.0.0.1:{unused_tcp_port}", failing)
