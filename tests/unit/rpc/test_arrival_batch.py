"""Calls that go on together."""

from __future__ import annotations

import asyncio
from typing import Any

from support.handler_server import running, until

from coupon_service.batching import BatchingSettings
from coupon_service.rpc.arrival_batch import ArrivalBatcher
from coupon_service.v1 import redemption_service_pb2 as pb

SOON_S = 0.5
BATCHING = BatchingSettings(
    arrival_linger_ms=1_000 * SOON_S,
    linger_ms=2_000 * SOON_S,
    pipeline_max_wait_ms=3_000 * SOON_S,
    batch_max_wait_ms=0,
)
BUSY_CALLS = BATCHING.arrival_busy_calls


async def test_calls_of_a_batch_go_on_one_right_after_the_other() -> None:
    arrivals = ArrivalBatcher(BATCHING)
    order: list[str] = []

    async def come(name: str) -> None:
        await arrivals.join()
        order.append(name)

    first = [asyncio.ensure_future(come(name)) for name in "abc"]
    await asyncio.sleep(SOON_S / 5)
    last = asyncio.ensure_future(come("d"))
    left = asyncio.ensure_future(come("e"))
    await asyncio.sleep(0)
    left.cancel()
    assert order == []
    await asyncio.wait([*first, last, left])
    assert order == ["a", "b", "c", "d"]
    await come("f")
    assert order[-1] == "f"


async def test_calls_wait_for_each_other_only_where_many_are_open() -> None:
    held = asyncio.Event()
    begun: list[str] = []

    async def behavior(request: pb.RedeemCodeRequest, context: Any) -> pb.RedeemCodeResponse:
        begun.append(request.request_id)
        await held.wait()
        return pb.RedeemCodeResponse()

    async with running(behavior, batching=BATCHING) as run:

        def call(name: str) -> asyncio.Future[Any]:
            request = pb.RedeemCodeRequest(request_id=name)
            return asyncio.ensure_future(run.redemptions.RedeemCode(request, timeout=30))

        calls = [call("") for _ in range(BUSY_CALLS)]
        await until(lambda: len(begun) == BUSY_CALLS)
        calls += [call("x"), call("y")]
        await until(lambda: run.handler.open_calls == BUSY_CALLS + 2)
        assert len(begun) == BUSY_CALLS
        await until(lambda: begun[BUSY_CALLS:] == ["x", "y"])
        held.set()
        await asyncio.gather(*calls)
