"""Shoppers of an open load, over Checkout streams or as calls, from one asyncio process.

ghz times whole streams. This generator times each operation from when it was due, and costs more of
the processor: it is for latency at moderate rates, not for throughput.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final

import grpc.aio

from bench.loads.caller import metadata
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

OPTIONS: Final = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
OPERATIONS_OF_A_SHOPPER: Final = 3

Carry = Callable[[str, Any], Awaitable[Any]]
"""Makes one operation, by its field of CheckoutOperation; None where it failed."""


@dataclass(slots=True)
class Visits:
    """What became of all operations. `ok`: by their field. Latencies from when each was due."""

    latencies_ms: list[float] = field(default_factory=list[float])
    ok: Counter[str] = field(default_factory=Counter[str])
    errors: int = 0
    seconds: float = 0.0


class StreamCaller:
    """One Checkout stream, to which what is due at the same time goes in one message."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        stub: Any = RedemptionServiceStub(channel)
        self._call: Any = stub.Checkout(metadata=metadata())
        self._tags = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[pb.CheckoutResult]] = {}
        self._due: list[pb.CheckoutOperation] = []
        self._writer: asyncio.Task[None] | None = None
        self._reader = asyncio.ensure_future(self._read())

    async def carry(self, name: str, request: Any) -> Any:
        """The response; None where the operation failed."""
        operation = pb.CheckoutOperation(tag=next(self._tags), **{name: request})
        answer = asyncio.get_running_loop().create_future()
        self._waiting[operation.tag] = answer
        self._due.append(operation)
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())
        result = await answer
        return None if result.HasField("error") else getattr(result, name)

    async def close(self) -> None:
        """Half-closes the stream, and waits for its end."""
        await self._call.done_writing()
        await self._reader

    async def _write(self) -> None:
        while self._due:
            due, self._due = self._due, []
            await self._call.write(pb.CheckoutRequest(operations=due))
        self._writer = None

    async def _read(self) -> None:
        while (response := await self._call.read()) is not grpc.aio.EOF:
            for result in response.results:
                self._waiting.pop(result.tag).set_result(result)


def unary(channel: grpc.aio.Channel) -> Carry:
    """The same as calls."""
    stub: Any = RedemptionServiceStub(channel)
    methods = {
        "validate_code": stub.ValidateCode,
        "lock_code": stub.LockCode,
        "redeem_code": stub.RedeemCode,
    }

    async def carry(name: str, request: Any) -> Any:
        try:
            return await methods[name](request, metadata=metadata(), timeout=20)
        except grpc.aio.AioRpcError:
            return None

    return carry


async def visit(
    address: str, codes: Sequence[str], *, rate: int, seconds: int, connections: int, streamed: bool
) -> Visits:
    """So many operations a second, of shoppers who validate, then lock, then redeem a code."""
    visits = Visits()
    async with AsyncExitStack() as stack:
        carries: list[Carry] = []
        for _ in range(connections):
            channel = grpc.aio.insecure_channel(address, OPTIONS)
            await stack.enter_async_context(channel)
            await channel.channel_ready()
            if streamed:
                caller = StreamCaller(channel)
                stack.push_async_callback(caller.close)
                carries.append(caller.carry)
            else:
                carries.append(unary(channel))
        began_s = perf_counter()
        shoppers: list[asyncio.Task[None]] = []
        pairs = zip(itertools.cycle(carries), itertools.cycle(codes), strict=False)
        for number in range(rate * seconds // OPERATIONS_OF_A_SHOPPER):
            due_s = began_s + number * OPERATIONS_OF_A_SHOPPER / rate
            await asyncio.sleep(max(0.0, due_s - perf_counter()))
            carry, code = next(pairs)
            shoppers.append(asyncio.ensure_future(_shop(carry, code, due_s, visits)))
        await asyncio.gather(*shoppers)
        visits.seconds = perf_counter() - began_s
    return visits


async def _shop(carry: Carry, code: str, due_s: float, visits: Visits) -> None:
    user_id, token = uuid.uuid4().hex, ""
    for name in ("validate_code", "lock_code", "redeem_code"):
        request: Any
        if name == "validate_code":
            request = pb.ValidateCodeRequest(code=code, user_id=user_id)
        elif name == "lock_code":
            request = pb.LockCodeRequest(code=code, user_id=user_id, request_id=uuid.uuid4().hex)
        else:
            request = pb.RedeemCodeRequest(
                code=code, user_id=user_id, lock_token=token, request_id=uuid.uuid4().hex
            )
        response = await carry(name, request)
        now_s = perf_counter()
        visits.latencies_ms.append((now_s - due_s) * 1000)
        due_s = now_s
        if response is None:
            visits.errors += 1
            return
        visits.ok[name] += 1
        if name == "lock_code":
            token = response.lock_token
