"""Callers contend for a single-use code: one at a time holds its lock (I10, I7, I8).

`COUPON_TEST_SEED` repeats the pauses of a failed run; the interleaving is up to the machine.
"""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import UTC
from itertools import pairwise
from typing import Any, Final

import grpc.aio
import psycopg
import pytest
from support.histories import Connection
from support.invariants import assert_adds_up
from support.lease_servers import acquire
from support.proof_sizes import new_seed, times
from support.service import (
    Api,
    ServerThread,
    books,
    lock_grace,
    new_codes,
    reason_of,
    redemptions,
    settings_for,
    unique,
)

from coupon_service.leases import AcquireStatus, AdmitStatus, LeaseKey, Leases

ROUNDS: Final = times(500, 10_000)
ROUNDS_AT_ONCE: Final = 25
RPC_ROUNDS: Final = times(60, 1_000)
RPC_ROUNDS_AT_ONCE: Final = 60
CALLERS: Final = 4

BOOK: Final = "book-1"
PATIENT_MS: Final = 10_000  # a timeout that a busy machine does not exceed
GRACE_MS: Final = 10
SERVICE_GRACE_MS: Final = 1_000
LATER_S: Final = 0.02
"""A margin after which a lock past its expiry and grace is certainly gone."""


@pytest.fixture
def chance() -> random.Random:
    seed = new_seed()
    print(f"COUPON_TEST_SEED={seed}")  # noqa: T201 - shown when the test fails
    return random.Random(seed)


@dataclass(slots=True)
class Holds:
    """The times for which a code was held, from the holders' view, in seconds since 1970."""

    times_s: list[tuple[float, float, str]] = field(default_factory=list[tuple[float, float, str]])
    ended: Counter[str] = field(default_factory=Counter[str])

    def add(self, begin_s: float, end_s: float, who: str) -> None:
        """Record a time for which a caller certainly held it."""
        if begin_s < end_s:
            self.times_s.append((begin_s, end_s, who))

    def assert_apart(self) -> None:
        """Assert that no two holders overlap."""
        ordered = sorted(self.times_s)
        for before, after in pairwise(ordered):
            assert before[1] <= after[0], (before, after)


# --- permits in Redis ----------------------------------------------------------------------------


@pytest.fixture
async def clients(redis_url: str) -> AsyncIterator[list[Leases]]:
    clients = [Leases(redis_url, timeout_ms=PATIENT_MS, grace_ms=GRACE_MS) for _ in range(3)]
    yield clients
    for leases in clients:
        await leases.close()


async def test_one_caller_at_a_time_holds_a_permit(
    clients: list[Leases], chance: random.Random
) -> None:
    ended: Counter[str] = Counter()
    for first in range(0, ROUNDS, ROUNDS_AT_ONCE):
        rounds = [Holds() for _ in range(ROUNDS_AT_ONCE)]
        await asyncio.gather(
            *(
                contend(clients[who % 3], holds, f"CODE{first + n}", who, chance)
                for n, holds in enumerate(rounds)
                for who in range(CALLERS)
            )
        )
        for holds in rounds:
            holds.assert_apart()
            ended += holds.ended
    assert ended["held"] >= ROUNDS
    assert min(ended["used"], ended["released"], ended["late"], ended["refused"]) > 0, ended


async def contend(leases: Leases, holds: Holds, code: str, who: int, chance: random.Random) -> None:
    """Try until the lock is granted, and then hold it for less or more than its lifetime."""
    user = f"user-{who}-{code}"
    for attempt in range(50):
        lock = LeaseKey(code, BOOK, user, f"lock-{who}-{attempt}")
        ttl_ms = chance.choice((20, 60))
        result = await acquire(leases, lock, ttl_ms, permits_max=1)
        if result.status is AcquireStatus.GRANTED:
            await hold(leases, holds, lock, result.expire_ms, chance)
            return
        assert result.status is AcquireStatus.FULL, result
        holds.ended["refused"] += 1
        await asyncio.sleep(chance.random() * 0.03)


async def hold(
    leases: Leases,
    holds: Holds,
    lock: LeaseKey,
    expire_ms: int,
    chance: random.Random,
) -> None:
    """Acquire it again, then use the lock, release it, or use it after its expiry."""
    later = lock._replace(lock_id=f"{lock.lock_id}-again")
    begin_s = time.time()
    holds.ended["held"] += 1
    again = await acquire(leases, later, 20, permits_max=1)
    if again.status is not AcquireStatus.HELD_BEFORE:  # a live lock never blocks its holder
        assert time.time() * 1000 >= expire_ms + GRACE_MS, again
        holds.ended["late"] += 1
        await leases.release(later)
        return
    match chance.choice(("use", "release", "be late")):
        case "use":
            await asyncio.sleep(chance.random() * 0.02)
            sent_s = time.time()
            admission = await leases.admit(lock, expire_ms)
            if sent_s * 1000 < expire_ms:
                in_time = time.time() * 1000 < expire_ms + GRACE_MS
                assert admission.status is AdmitStatus.HELD or not in_time, admission
            holds.add(begin_s, min(time.time(), expire_ms / 1000), lock.user_id)
            holds.ended["used"] += 1
            await leases.release(lock, tombstone_until_ms=expire_ms + 60_000)
            assert (await leases.admit(lock, expire_ms)).status is AdmitStatus.GONE
        case "release":
            await asyncio.sleep(chance.random() * 0.02)
            holds.add(begin_s, min(time.time(), expire_ms / 1000), lock.user_id)
            holds.ended["released"] += 1
            await leases.release(lock)
        case _:
            holds.add(begin_s, expire_ms / 1000, lock.user_id)
            over_s = (expire_ms + GRACE_MS) / 1000 - time.time()
            await asyncio.sleep(max(over_s, 0) + LATER_S)
            assert (await leases.admit(lock, expire_ms)).status is AdmitStatus.GONE
            holds.ended["late"] += 1


# --- locks of the service -----------------------------------------------------------------------


@pytest.fixture
def server(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> Iterator[ServerThread]:
    """A server with a lock grace of one second."""
    with new_database() as database_url:
        settings = settings_for(
            database_url,
            redis_url,
            **lock_grace(SERVICE_GRACE_MS),
        )
        with ServerThread(settings) as running:
            yield running


async def test_one_caller_at_a_time_holds_a_lock(
    server: ServerThread, chance: random.Random
) -> None:
    connections = [Connection(server.address) for _ in range(3)]
    ended: Counter[str] = Counter()
    for _ in range(0, RPC_ROUNDS, RPC_ROUNDS_AT_ONCE):
        names = new_codes(RPC_ROUNDS_AT_ONCE)
        api = Api(server.address)
        api.book(codes=names, lock_policy=books.LOCK_POLICY_REQUIRED)
        api.close()
        rounds = [Holds() for _ in names]
        await asyncio.gather(
            *(
                Contender(connections[who % 3].redemptions, holds, code, chance).run()
                for code, holds in zip(names, rounds, strict=True)
                for who in range(CALLERS)
            )
        )
        for holds in rounds:
            holds.assert_apart()
            ended += holds.ended
    for connection in connections:
        await connection.channel.close()
    kinds = ("late", "released", "followed", "CODE_LOCKED")
    assert min(ended[it] for it in kinds) > 0, ended
    assert ended["redeemed"] <= RPC_ROUNDS + RPC_ROUNDS_AT_ONCE
    with psycopg.connect(server.database_url) as connection:
        assert_adds_up(connection)


class Contender:
    """A caller that contends for a code."""

    def __init__(self, stub: Any, holds: Holds, code: str, chance: random.Random) -> None:
        self._stub = stub
        self._holds = holds
        self._code = code
        self._chance = chance
        self._user = unique("user")

    async def run(self) -> None:
        """Try until the code is used up, or was held."""
        while True:
            held = await answer_or_reason(self._lock())
            if not isinstance(held, str):
                await self._use(held, time.time())
                return
            self._holds.ended[held] += 1
            if held == "CODE_ALREADY_REDEEMED":
                return
            assert held in ("CODE_LOCKED", "CONTENTION")
            await asyncio.sleep(self._chance.random() * 0.3)

    async def _lock(self) -> redemptions.LockCodeResponse:
        request = redemptions.LockCodeRequest(
            code=self._code, user_id=self._user, request_id=unique("request")
        )
        request.ttl.seconds = 1
        return await self._stub.LockCode(request)

    async def _use(self, held: redemptions.LockCodeResponse, begin_s: float) -> None:
        expire_s = held.lock.expire_time.ToDatetime(UTC).timestamp()
        what = self._chance.choice(("redeem", "release", "be late", "lock anew"))
        if what == "lock anew":
            self._holds.add(begin_s, expire_s, self._user)
            await self._lock_anew(held, expire_s)
            return
        if what == "be late":
            self._holds.add(begin_s, expire_s, self._user)
            await asyncio.sleep(max(expire_s - time.time(), 0) + LATER_S)
            assert await self._redeem(held) in ("LOCK_EXPIRED", "CODE_ALREADY_REDEEMED")
            self._holds.ended["late"] += 1
            return
        await asyncio.sleep(self._chance.random() * 0.1)
        self._holds.add(begin_s, min(time.time(), expire_s), self._user)
        if what == "release":
            request = redemptions.UnlockCodeRequest(
                lock_token=held.lock_token, request_id=unique("request")
            )
            answer = await answer_or_reason(self._stub.UnlockCode(request))
            assert answer != "LOCK_EXPIRED" or time.time() >= expire_s
            self._holds.ended["late" if answer == "LOCK_EXPIRED" else "released"] += 1
            assert await self._redeem(held) in ("LOCK_EXPIRED", "CODE_ALREADY_REDEEMED")
            return
        answer = await self._redeem(held)
        # A redemption within the lifetime of its lock is never blocked.
        assert answer == "OK" or time.time() >= expire_s, answer
        self._holds.ended["redeemed" if answer == "OK" else "late"] += 1

    async def _lock_anew(self, held: redemptions.LockCodeResponse, expire_s: float) -> None:
        """Lock the code again after the expiry: within the grace no other caller gets it."""
        await asyncio.sleep(max(expire_s - time.time(), 0) + self._chance.random() * 0.1)
        following = await answer_or_reason(self._lock())
        if isinstance(following, str):
            in_time = time.time() < expire_s + SERVICE_GRACE_MS / 1000
            assert not in_time, following
            self._holds.ended["late"] += 1
            return
        assert following.lock.fence > held.lock.fence
        begin_s = time.time()
        assert await self._redeem(held) == "LOCK_EXPIRED"
        self._holds.ended["followed"] += 1
        await self._use(following, begin_s)

    async def _redeem(self, held: redemptions.LockCodeResponse) -> str:
        request = redemptions.RedeemCodeRequest(
            code=self._code,
            user_id=self._user,
            lock_token=held.lock_token,
            request_id=unique("request"),
        )
        answer = await answer_or_reason(self._stub.RedeemCode(request))
        return answer if isinstance(answer, str) else "OK"


async def answer_or_reason(call: Awaitable[Any]) -> Any:
    """The answer of a call, or the reason of its refusal."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)
