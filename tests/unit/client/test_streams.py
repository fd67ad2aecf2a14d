"""Calls of the asynchronous client over Checkout streams."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest
from support.scripted_server import scripted_server

from coupon_service import errors as of_service
from coupon_service.client import AsyncCouponClient, ClientSettings, errors, streams

STREAMED = ClientSettings(
    timeout_s=60,
    try_timeout_s=30,
    backoff_min_s=0.01,
    backoff_max_s=0.05,
    connections=2,
    streams=2,
)


async def test_calls_go_over_streams() -> None:
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            for number in range(6):
                answer = await client.redeem_code(f"CODE{number}", "ann")
                assert answer.redemption.code == f"CODE{number}"
    assert [len(it.operations) for it in script.messages] == [1] * 6
    assert len(script.peers) == 2
    assert len(script.streams) == 2
    assert all(0 < it.operations[0].timeout.ToSeconds() <= 30 for it in script.messages)


async def test_calls_that_begin_together_share_messages() -> None:
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            await client.redeem_code("CODE", "ann")
            calls = [client.redeem_code(f"CODE{number}", "ann") for number in range(200)]
            answers = await asyncio.gather(*calls)
    assert [it.redemption.code for it in answers] == [f"CODE{number}" for number in range(200)]
    assert len(script.messages) <= 10


async def test_a_message_has_an_end() -> None:
    settings = replace(STREAMED, streams=1)
    metadata = {"notes": "x" * 3_000}
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=settings) as client:
            calls = [client.redeem_code("C", "ann", metadata=metadata) for _ in range(300)]
            await asyncio.gather(*calls)
    assert max(len(it.operations) for it in script.messages) <= 128
    assert max(it.ByteSize() for it in script.messages) < 300_000


async def test_a_request_that_a_stream_might_not_take_is_a_call() -> None:
    settings = replace(STREAMED, streams=1)
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=settings) as client:
            codes = "CODE", "C" * 1_200_000, "OTHER"
            await asyncio.gather(*(client.redeem_code(code, "ann") for code in codes))
    assert [it.code for it in script.requests] == [codes[1]]
    assert sum(len(it.operations) for it in script.messages) == 2


async def test_an_operation_is_repeated_as_a_call_is() -> None:
    outcomes = (of_service.Contention(), of_service.Overloaded(retry_after_ms=20))
    with scripted_server(*outcomes) as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            await client.redeem_code("CODE", "ann")
            script.outcomes.append(of_service.CodeLocked(retry_after_ms=1_500))
            with pytest.raises(errors.CodeLocked) as caught:
                await client.redeem_code("OTHER", "ann", request_id="the order")
    assert caught.value.retry_after_ms == 1_500
    assert caught.value.request_id == "the order"
    tries = [it.operations[0].redeem_code for it in script.messages]
    assert [it.code for it in tries] == ["CODE"] * 3 + ["OTHER"]
    assert len({it.request_id for it in tries}) == 2


async def test_streams_that_the_service_ends_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "SHORT_LIFE_S", 0)
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            for _ in range(4):
                script.outcomes.append(of_service.StreamEnded())
                await asyncio.gather(*(client.redeem_code("CODE", "ann") for _ in range(20)))
    operations = sum(len(it.operations) for it in script.messages)
    assert len(script.requests) + operations >= 84
    assert len(script.streams) >= 3


async def test_calls_are_made_where_no_stream_is_open() -> None:
    with scripted_server(*[of_service.StreamEnded()] * 2) as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            await client.redeem_code("CODE", "ann")
    assert len(script.messages) == 2
    assert len(script.requests) == 1


async def test_a_stream_that_is_cut_leaves_no_call_behind() -> None:
    with scripted_server(grpc.StatusCode.UNAVAILABLE) as (address, script):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            await asyncio.gather(*(client.redeem_code("CODE", "ann") for _ in range(20)))
    assert len(script.streams) >= 2


@pytest.mark.parametrize(
    "status", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.PERMISSION_DENIED]
)
async def test_the_end_of_a_stream_is_not_taken_for_an_answer(status: grpc.StatusCode) -> None:
    """As gRPC ends one with RESOURCE_EXHAUSTED for a message that is too large: what was sent
    before may have been carried out."""
    refused = of_service.CodeAlreadyRedeemed()
    with scripted_server(status, None, status, refused) as (address, _):
        async with AsyncCouponClient(address, settings=STREAMED) as client:
            await client.redeem_code("CODE", "ann")
            with pytest.raises(errors.CodeAlreadyRedeemed) as caught:
                await client.redeem_code("CODE", "ann")
    assert caught.value.outcome_unknown


async def test_a_stream_is_replaced_when_the_token_changes() -> None:
    tokens = iter(["first", "first", "second", "second"])
    settings = replace(STREAMED, streams=1)
    with scripted_server() as (address, script):
        async with AsyncCouponClient(
            address, token=lambda: next(tokens), settings=settings
        ) as client:
            for _ in range(4):
                await client.redeem_code("CODE", "ann")
    assert script.streams == ["Bearer first", "Bearer second"]
    assert len(script.messages) == 4


async def test_an_answer_that_does_not_come_is_waited_for_no_longer_than_a_try() -> None:
    settings = replace(STREAMED, try_timeout_s=0.2)
    with scripted_server(1.0) as (address, script):
        async with AsyncCouponClient(address, settings=settings) as client:
            await client.redeem_code("CODE", "ann")
    assert len(script.messages) >= 2


async def test_a_call_that_is_cancelled_leaves_the_stream_to_others() -> None:
    settings = replace(STREAMED, streams=1)
    with scripted_server(0.3) as (address, script):
        async with AsyncCouponClient(address, settings=settings) as client:
            task = asyncio.ensure_future(client.redeem_code("CODE", "ann"))
            while not script.messages:
                await asyncio.sleep(0.01)
            task.cancel()
            answer = await client.redeem_code("OTHER", "ann")
    assert answer.redemption.code == "OTHER"
    assert len(script.streams) == 1


async def test_a_call_that_was_given_up_is_not_sent_any_more() -> None:
    settings = replace(STREAMED, streams=1)
    with scripted_server() as (address, script):
        async with AsyncCouponClient(address, settings=settings) as client:
            given_up = asyncio.ensure_future(client.redeem_code("CODE", "ann"))
            other = asyncio.ensure_future(client.redeem_code("OTHER", "ann"))
            await asyncio.sleep(0)
            given_up.cancel()
            await other
    assert [[it.redeem_code.code for it in one.operations] for one in script.messages] == [
        ["OTHER"]
    ]


async def test_streams_fail_at_once_where_calls_are_to(unused_tcp_port: int) -> None:
    settings = replace(STREAMED, retry_budget=2, wait_for_ready=False)
    async with AsyncCouponClient(f"127.0.0.1:{unused_tcp_port}", settings=settings) as client:
        with pytest.raises(errors.Unavailable):
            await client.redeem_code("CODE", "ann")
