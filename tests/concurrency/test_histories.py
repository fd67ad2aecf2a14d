"""Histories of concurrent calls on a code are linearizable, also under faults.

I1, I2, I3, I5, I6, I8 and, while Redis keeps its data, I10. `COUPON_TEST_SEED` repeats the calls of
a failed run; their interleaving is up to the machine.
"""

# redis-py does not type its keyword arguments.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any, Final

import psycopg
import pytest
import redis.asyncio
from support.code_specification import Redemptions, Rules
from support.histories import (
    Connection,
    Impatience,
    Record,
    conclusive,
    contradiction,
    use_concurrently,
    without_locks,
)
from support.idle import settle
from support.invariants import assert_adds_up
from support.linearizability import Operation
from support.proof_sizes import new_seed, progress, times
from support.service import Api, ServerThread, books, new_codes, restricted_settings
from support.shards import SHARDS, business_in, make_shards, make_views

from coupon_service.embedded import EmbeddedRedis
from coupon_service.model import EventType

HISTORIES: Final = times(400, 20_000)
"""For each kind of fault."""
CODES_AT_ONCE: Final = 100
CHANNELS: Final = 4
OF: Final = 4
"""Shards, where there are several."""

RULES: Final = (
    Rules(1, 0, "OFF"),
    Rules(2, 1, "OFF"),
    Rules(3, 0, "OFF"),
    Rules(0, 2, "OPTIONAL"),
    Rules(1, 0, "OPTIONAL"),
    Rules(2, 0, "OPTIONAL"),
    Rules(3, 1, "OPTIONAL"),
    Rules(1, 0, "REQUIRED"),
    Rules(2, 2, "REQUIRED"),
)
LOCK_POLICIES: Final = {
    "OFF": books.LOCK_POLICY_OFF,
    "OPTIONAL": books.LOCK_POLICY_OPTIONAL,
    "REQUIRED": books.LOCK_POLICY_REQUIRED,
}

LIVE: Final = f"""
SELECT book_id, code, request_id FROM redemption_audit AS r
WHERE type = {int(EventType.REDEEMED)} AND code = ANY(%s) AND NOT EXISTS (
    SELECT FROM redemption_audit AS b
    WHERE b.type = {int(EventType.ROLLED_BACK)} AND b.redemption_id = r.event_id
    AND b.code = r.code)
"""
END_A_BACKEND: Final = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'coupon_service%'
ORDER BY random() LIMIT 1
"""


@dataclass(frozen=True)
class Stack:
    """A service with a private database and Redis."""

    server: ServerThread
    database_url: str
    redis_url: str


@pytest.fixture(scope="module", params=[SHARDS], ids=str)
def stack(
    request: pytest.FixtureRequest,
    new_database: Callable[[], AbstractContextManager[str]],
    new_empty_database: Callable[[], AbstractContextManager[str]],
    server_folder: Path,
) -> Iterator[Stack]:
    """`request.param`: its shards."""
    of: int = request.param
    with (
        (new_empty_database if of > 1 else new_database)() as database_url,
        EmbeddedRedis(server_folder / "redis-of-histories", durable=False) as server,
    ):
        if of > 1:
            make_shards(database_url, of=of)
            make_views(database_url, of=of)
        with (
            restricted_settings(database_url, server.url, of) as settings,
            ServerThread(settings) as running,
        ):
            yield Stack(running, database_url, server.url)


# --- faults -------------------------------------------------------------------------------------


@asynccontextmanager
async def repeatedly(act: Callable[[], Any], every_s: float) -> AsyncGenerator[None]:
    """Repeat `act` at random intervals inside the block."""
    stopped = False

    async def repeat() -> None:
        while not stopped:  # psycopg and redis-py sometimes swallow a cancellation
            await asyncio.sleep(random.random() * 2 * every_s)
            await act()

    task = asyncio.create_task(repeat())
    try:
        yield
    finally:
        stopped = True
        await task


@asynccontextmanager
async def no_fault(stack: Stack) -> AsyncGenerator[None]:
    yield


@asynccontextmanager
async def backends_terminated(stack: Stack) -> AsyncGenerator[None]:
    async with await psycopg.AsyncConnection.connect(
        stack.database_url, autocommit=True
    ) as connection:
        async with repeatedly(lambda: connection.execute(END_A_BACKEND), 0.1):
            yield


@asynccontextmanager
async def redis_connections_cut(stack: Stack) -> AsyncGenerator[None]:
    async with on_redis(stack, "CLIENT", "KILL", "TYPE", "NORMAL", "SKIPME", "YES", every_s=0.2):
        yield


@asynccontextmanager
async def redis_flushed(stack: Stack) -> AsyncGenerator[None]:
    async with on_redis(stack, "FLUSHALL", every_s=0.1):
        yield


@asynccontextmanager
async def on_redis(stack: Stack, *command: str, every_s: float) -> AsyncGenerator[None]:
    client: Any = redis.asyncio.Redis.from_url(stack.redis_url)
    async with client, repeatedly(lambda: client.execute_command(*command), every_s):
        yield


@dataclass(frozen=True)
class Fault:
    """A repeated fault, and the share of calls that callers abandon.

    `strands_permits`: it may leave permits taken until they expire. `loses_locks`: Redis loses its
    data.
    """

    strike: Callable[[Stack], Any] = no_fault
    impatient: float = 0.0
    strands_permits: bool = False
    loses_locks: bool = False


FAULTS: Final = {
    "none": Fault(),
    "impatient callers": Fault(impatient=0.25),
    "backends terminated": Fault(backends_terminated, 0.05, strands_permits=True),
    "redis connections cut": Fault(redis_connections_cut, 0.05, strands_permits=True),
    "redis flushed": Fault(redis_flushed, 0.05, loses_locks=True),
}


FAULTS_OF_SHARDS: Final = [] if SHARDS > 1 else ["none", "backends terminated"]
"""What is tried with several shards as well, where `COUPON_TEST_SHARDS` does not say so of all."""


# --- the test -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stack", "kind"),
    [(SHARDS, kind) for kind in FAULTS] + [(OF, kind) for kind in FAULTS_OF_SHARDS],
    indirect=["stack"],
)
async def test_histories_are_linearizable(stack: Stack, kind: str) -> None:
    fault = FAULTS[kind]
    seed = new_seed()
    connections = [Connection(stack.server.address) for _ in range(CHANNELS)]
    for round_ in progress("rounds of a hundred codes", -(-HISTORIES // CODES_AT_ONCE)):
        records = new_records(stack.server)
        async with fault.strike(stack):
            await use_concurrently(
                records, connections, f"{seed}/{round_}", Impatience(fault.impatient)
            )
        await asyncio.to_thread(settle, stack.server)
        add_final_reads(stack.database_url, records)
        contradictions = [text for it in records if (text := contradiction_of(it, fault))]
        assert not contradictions, f"COUPON_TEST_SEED={seed}\n" + "\n\n".join(contradictions[:5])
    for connection in connections:
        await connection.channel.close()
    with psycopg.connect(stack.database_url) as connection:
        assert_adds_up(connection)


def new_records(server: ServerThread) -> list[Record]:
    """Unused codes under each set of rules: of the same names in each of several shards."""
    api = Api(server.address)
    of = server.settings.shards
    businesses = [business_in(shard, of) for shard in range(of)] if of > 1 else [""]
    records: list[Record] = []
    for rules in RULES:
        names = new_codes(-(-CODES_AT_ONCE // len(RULES) // of))
        limits = books.BookLimits(
            max_redemptions_per_code=rules.limit,
            max_redemptions_per_user_per_code=rules.user_limit,
        )
        for business_id in businesses:
            named = {"business_id": business_id} if business_id else {}
            book = api.book(
                codes=names, limits=limits, lock_policy=LOCK_POLICIES[rules.locks], **named
            )
            records += [Record(code, rules, book.book_id, business_id) for code in names]
    api.close()
    return records


def add_final_reads(database_url: str, records: Sequence[Record]) -> None:
    """Add the last operation of each history: the live redemptions in the ledger."""
    live: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
    with psycopg.connect(database_url) as connection:
        rows = connection.execute(LIVE.encode(), ([it.code for it in records],))
        for book_id, code, request in rows:
            live[str(book_id), code].add(request)
    now_s = perf_counter()
    for it in records:
        answer = ("OK", frozenset(live[it.book_id, it.code]))
        it.operations.append(Operation(Redemptions(), answer, now_s, now_s))


def contradiction_of(record: Record, fault: Fault) -> str:
    """The history of a code as text when it is not linearizable; otherwise empty."""
    operations = conclusive(record, after_losses=fault.strands_permits)
    if fault.loses_locks:
        return contradiction(without_locks(operations), replace(record.rules, locks="OFF"))
    return contradiction(operations, record.rules)
