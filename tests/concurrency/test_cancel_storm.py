"""Calls that are abandoned at any moment leak no resources (I12) and have no partial effect.

`COUPON_TEST_SEED` repeats the calls of a failed run, and the times at which they are abandoned.
"""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Final

import grpc
import grpc.aio
import psycopg
import pytest
from support.histories import UNKNOWN, Connection
from support.idle import Held, held, settle
from support.invariants import assert_adds_up, assert_between
from support.proof_sizes import new_seed, times
from support.service import (
    Api,
    ServerThread,
    assignments,
    books,
    new_codes,
    redemptions,
    settings_for,
    unique,
)
from support.waiting import until

from coupon_service.model import EventType

CALLS: Final = times(10_000, 100_000)
WARM_UP: Final = 1_000
CALLERS: Final = 128
CHANNELS: Final = 4
TIMEOUT_MAX_S: Final = 0.06
CODES: Final = 200
USERS: Final = 50

FAULTS: Final = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}
"""Statuses that no caller may get here."""

REDEEMED: Final = f"""
SELECT code, count(*) FROM redemption_audit WHERE type = {EventType.REDEEMED:d} GROUP BY code
"""


@pytest.fixture
def server(
    new_database: Callable[[], AbstractContextManager[str]], redis_url: str
) -> Iterator[ServerThread]:
    with new_database() as database_url:
        with ServerThread(settings_for(database_url, redis_url)) as running:
            yield running


@dataclass(slots=True)
class Storm:
    """The codes, and the outcomes of the calls."""

    book_id: str
    locking_book_id: str
    codes: list[str]
    lockable: list[str]
    ended: Counter[str] = field(default_factory=Counter[str])
    ok: Counter[str] = field(default_factory=Counter[str])
    unknown: Counter[str] = field(default_factory=Counter[str])
    """Redemptions by code, with an OK answer and with an unknown outcome."""
    redemption_ids: list[str] = field(default_factory=list[str])
    tokens: list[str] = field(default_factory=list[str])


async def test_abandoned_calls_leak_nothing_and_have_no_partial_effect(
    server: ServerThread,
) -> None:
    seed = new_seed()
    storm = prepared(server.address)
    await run_storm(storm, server, WARM_UP, f"{seed}/warm-up")  # opens what stays open
    before = await asyncio.to_thread(settle, server)
    await run_storm(storm, server, CALLS, seed)
    after = await asyncio.to_thread(settle, server)
    outcomes = f"COUPON_TEST_SEED={seed}: {dict(storm.ended)}"
    assert storm.ended["unknown"] > CALLS / 10, f"too few calls were abandoned: {outcomes}"
    assert storm.ended["OK"] > CALLS / 10, f"too few calls succeeded: {outcomes}"
    await asyncio.to_thread(assert_no_leaks, server, before, after)
    assert_answers(server)
    assert_conserved(server, storm)


def prepared(address: str) -> Storm:
    """Codes without a limit, and codes with locks."""
    api = Api(address)
    plain, lockable = new_codes(CODES), new_codes(CODES)
    unlimited = books.BookLimits(max_redemptions_per_code=0, max_redemptions_per_user=0)
    book = api.book(codes=plain, limits=unlimited)
    limits = books.BookLimits(max_redemptions_per_code=3)
    locking = api.book(codes=lockable, limits=limits, lock_policy=books.LOCK_POLICY_OPTIONAL)
    api.close()
    return Storm(book.book_id, locking.book_id, plain, lockable)


async def run_storm(storm: Storm, server: ServerThread, calls: int, seed: str) -> None:
    """Run many callers, each with sequential calls."""
    connections = [Connection(server.address) for _ in range(CHANNELS)]

    async def caller(who: int) -> None:
        chance = random.Random(f"{seed}/{who}")
        for _ in range(calls // CALLERS + 1):
            await attempt(storm, chance.choice(connections), chance, unique("request"))

    await asyncio.gather(*map(caller, range(CALLERS)))
    for connection in connections:
        await connection.channel.close()


async def attempt(storm: Storm, connection: Connection, chance: random.Random, name: str) -> None:
    """One call, which ends by its deadline, by being cancelled, or with its answer."""
    rpc, request, code = next_call(storm, connection, chance, name)
    timeout_s = TIMEOUT_MAX_S * chance.random() ** 2
    impatient = chance.random() < 0.8
    call = rpc(request, timeout=timeout_s if impatient and chance.random() < 0.5 else 30)
    if impatient:
        asyncio.get_running_loop().call_later(timeout_s, call.cancel)
    try:
        answer = await call
        status = grpc.StatusCode.OK
    except asyncio.CancelledError:
        answer, status = None, grpc.StatusCode.CANCELLED
    except grpc.aio.AioRpcError as error:
        answer, status = error, error.code()
    assert status not in FAULTS, answer
    if status in UNKNOWN:
        storm.ended["unknown"] += 1
        storm.unknown[code] += 1
    elif status is not grpc.StatusCode.OK:
        storm.ended["refused"] += 1
    else:
        remember(storm, answer, code)


def remember(storm: Storm, answer: Any, code: str) -> None:
    """Record an OK answer, for later calls."""
    storm.ended["OK"] += 1
    storm.ok[code] += 1
    if code:
        storm.redemption_ids.append(answer.redemption.redemption_id)
    elif isinstance(answer, redemptions.LockCodeResponse):
        storm.tokens.append(answer.lock_token)


def next_call(
    storm: Storm, connection: Connection, chance: random.Random, name: str
) -> tuple[Any, Any, str]:
    """The method, its request, and the code if it redeems one."""
    stub = connection.redemptions
    user = f"user-{chance.randrange(USERS)}"
    kind = chance.randrange(10)
    if kind in (0, 1, 2, 3):
        code = chance.choice(storm.codes if kind < 2 else storm.lockable)
        request = redemptions.RedeemCodeRequest(code=code, user_id=user, request_id=name)
        return stub.RedeemCode, request, code
    if kind == 4 and storm.redemption_ids:
        redemption_id = chance.choice(storm.redemption_ids)
        request = redemptions.RollbackRedemptionRequest(
            redemption_id=redemption_id, request_id=name
        )
        return stub.RollbackRedemption, request, ""
    if kind in (5, 6):
        code = chance.choice(storm.lockable)
        request = redemptions.LockCodeRequest(code=code, user_id=user, request_id=name)
        return stub.LockCode, request, ""
    if kind == 7 and storm.tokens:
        token = chance.choice(storm.tokens)
        return stub.UnlockCode, redemptions.UnlockCodeRequest(lock_token=token, request_id=name), ""
    if kind == 8:
        request = assignments.AssignRandomCodeRequest(
            book_id=storm.book_id, user_id=user, request_id=name
        )
        return connection.assignments.AssignRandomCode, request, ""
    request = redemptions.ValidateCodeRequest(code=chance.choice(storm.codes), user_id=user)
    return stub.ValidateCode, request, ""


def assert_no_leaks(server: ServerThread, before: Held, after: Held) -> None:
    """No task is left, every connection is idle and works, no descriptor is leaked."""
    assert after.is_idle
    inside: Any = server.server
    for shard in inside.shards:
        pool = shard.database.pool
        server.run(pool.check())  # replaces broken connections
        stats = pool.get_stats()
        assert stats.get("connections_lost", 0) == 0
        assert stats.get("returns_bad", 0) == 0
    assert after.connections <= server.settings.pool_max_size * server.settings.shards
    gc.collect()  # an abandoned call keeps its caller's channel open until then
    until(lambda: held(server).others <= before.others, why_not=lambda: held(server))


def assert_answers(server: ServerThread) -> None:
    """The server still answers calls."""
    api = Api(server.address)
    names = new_codes(50)
    api.book(codes=names)
    for code in names:
        assert api.redeem(code, "calm").counts.code_redemption_count == 1
    api.close()
    assert held(server).waiting == 0


def assert_conserved(server: ServerThread, storm: Storm) -> None:
    """OK ≤ redeemed ≤ OK + unknown for each code, and counters = ledger sums."""
    redeemed: defaultdict[str, int] = defaultdict(int)
    with psycopg.connect(server.database_url) as connection:
        for code, count in connection.execute(REDEEMED.encode()):
            redeemed[code] = count
        assert_adds_up(connection)
    for code in storm.codes + storm.lockable:
        assert_between(storm.ok[code], storm.unknown[code], redeemed[code])
