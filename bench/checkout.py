"""An open load of shoppers at the till, over the public API.

    python -m bench.checkout 127.0.0.1:50051 --rate 1000 --codes BENCHTILL --codes-count 20000

ghz sends one kind of request, and none that needs an earlier answer, so this is a client of
grpc.aio. A shopper validates a code, locks it, and redeems it with the lock's token; every seventh
thinks better of it and unlocks, every twentieth redemption is rolled back. Each step is due at a
time of its own, whether the service keeps up or not, and its latency counts from then on (no
coordinated omission). Each connection carries one shopper at a time of many. What the client itself
takes is part of the latency: the same load on the no-op server shows how much.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import grpc.aio
import uvloop

from bench.caller import metadata
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money
from coupon_service.v1.redemption_service_pb2_grpc import RedemptionServiceStub

STEP_S: Final = 0.5
"""From a shopper's step to the next."""

UNLOCK_EVERY: Final = 7
ROLL_BACK_EVERY: Final = 20
CALLS_PER_SHOPPER: Final = 3 + (1 - 1 / UNLOCK_EVERY) / ROLL_BACK_EVERY
TIMEOUT_S: Final = 10.0
WARM_UP_S: Final = 2.0
PRICE: Final = Money(amount_minor=4_000, currency_code="EUR")


@dataclass(slots=True)
class Till:
    """What the shoppers saw. Latencies in milliseconds, by kind of call.

    `late_ms`: how late the client sent shoppers, which is its own doing.
    """

    latencies_ms: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    ok: Counter[str] = field(default_factory=Counter[str])
    errors: Counter[str] = field(default_factory=Counter[str])
    late_ms: list[float] = field(default_factory=list[float])


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in figures. `ok` counts warm-up calls too, since they have their effects."""

    rate: float
    calls: int
    errors: dict[str, int]
    ok: dict[str, int]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    late_p99_ms: float
    p95_ms_of: dict[str, float]
    cpu_s: float


class Shoppers:
    """All shoppers of a run."""

    def __init__(self, channels: list[grpc.aio.Channel], codes: str, codes_count: int) -> None:
        self._stubs = [RedemptionServiceStub(channel) for channel in channels]
        self._codes = codes
        self._metadata = metadata()
        self._codes_count = codes_count
        self._run = uuid.uuid4().hex[:12]
        self._measure_from = 0.0
        self.till = Till()

    async def shop(self, rate: float, seconds: float) -> None:
        """Sends shoppers for so long, and waits for the last."""
        every_s = CALLS_PER_SHOPPER / rate
        begin = time.perf_counter()
        self._measure_from = begin + WARM_UP_S
        async with asyncio.TaskGroup() as shoppers:
            for number in itertools.count():
                due = begin + number * every_s
                if due > begin + WARM_UP_S + seconds:
                    return
                await _until(due)
                if due >= self._measure_from:
                    self.till.late_ms.append((time.perf_counter() - due) * 1000)
                shoppers.create_task(self._shopper(number, due))

    async def _shopper(self, number: int, due: float) -> None:
        stub: Any = self._stubs[number % len(self._stubs)]
        name = f"{self._run}-{number}"
        code = f"{self._codes}{number % self._codes_count}"
        about: dict[str, Any] = {"code": code, "user_id": name}
        order: dict[str, Any] = {"order_id": name, "order_amount": PRICE}
        request = pb.ValidateCodeRequest(**about, **order)
        if await self._step("validate", stub.ValidateCode, request, due) is None:
            return
        due += STEP_S
        request = pb.LockCodeRequest(**about, request_id=name)
        locked = await self._step("lock", stub.LockCode, request, due)
        if locked is None:
            return
        due += STEP_S
        token = locked.lock_token
        if number % UNLOCK_EVERY == 0:
            request = pb.UnlockCodeRequest(lock_token=token, request_id=name)
            await self._step("unlock", stub.UnlockCode, request, due)
            return
        request = pb.RedeemCodeRequest(**about, **order, lock_token=token, request_id=name)
        redeemed = await self._step("redeem", stub.RedeemCode, request, due)
        if redeemed is not None and number % ROLL_BACK_EVERY == 1:
            request = pb.RollbackRedemptionRequest(
                redemption_id=redeemed.redemption.redemption_id, request_id=name
            )
            await self._step("roll back", stub.RollbackRedemption, request, due + STEP_S)

    async def _step(
        self, kind: str, call: Callable[..., Awaitable[Any]], request: Any, due: float
    ) -> Any:
        """The answer, or None after an error."""
        await _until(due)
        try:
            answer = await call(request, timeout=TIMEOUT_S, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            self.till.errors[f"{kind}: {error.code().name} {error.details()}"] += 1
            return None
        self.till.ok[kind] += 1
        if due >= self._measure_from:
            latency_ms = (time.perf_counter() - due) * 1000
            self.till.latencies_ms.setdefault(kind, []).append(latency_ms)
        return answer


async def _until(due: float) -> None:
    left_s = due - time.perf_counter()
    if left_s > 0:
        await asyncio.sleep(left_s)


def percentile(values: list[float], percent: float) -> float:
    """The value that so many percent of the values do not exceed; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)] if ordered else 0.0


async def run(arguments: argparse.Namespace) -> Summary:
    """Connects, shops, and sums up."""
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    channels = [
        grpc.aio.insecure_channel(arguments.address, options) for _ in range(arguments.connections)
    ]
    for start in range(0, len(channels), 100):
        await asyncio.gather(*(it.channel_ready() for it in channels[start : start + 100]))
    shoppers = Shoppers(channels, arguments.codes, arguments.codes_count)
    await shoppers.shop(arguments.rate, arguments.seconds)
    await asyncio.gather(*(channel.close() for channel in channels))
    till = shoppers.till
    latencies = [latency for each in till.latencies_ms.values() for latency in each]
    times = os.times()
    return Summary(
        rate=arguments.rate,
        calls=len(latencies),
        errors=dict(till.errors),
        ok=dict(till.ok),
        p50_ms=percentile(latencies, 50),
        p95_ms=percentile(latencies, 95),
        p99_ms=percentile(latencies, 99),
        late_p99_ms=percentile(till.late_ms, 99),
        p95_ms_of={kind: percentile(each, 95) for kind, each in till.latencies_ms.items()},
        cpu_s=times.user + times.system,
    )


def main() -> None:
    """Prints the summary as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("--rate", type=float, default=1_000, help="calls a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--connections", type=int, default=1_000)
    parser.add_argument("--codes", required=True, help="what the codes begin with")
    parser.add_argument("--codes-count", type=int, required=True)
    arguments = parser.parse_args()
    print(json.dumps(asdict(uvloop.run(run(arguments)))))


if __name__ == "__main__":
    main()
