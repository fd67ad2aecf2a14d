"""Shards on Citus: each call goes to the node that has the shard, also when that has moved.

Those that need a cluster are skipped without one: docs/testing.md says how to name it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event
from typing import Any, cast
from uuid import uuid4

import grpc
import psycopg
import pytest
from psycopg import pq
from psycopg.rows import TupleRow
from support.citus import require_cluster
from support.command_line import run
from support.service import Api, ServerThread, audit, books, new_codes, redemptions, settings_for
from support.shards import business_in, make_shards
from support.waiting import until

from coupon_service.store.citus import ASKED_ELSEWHERE, SELECT_NODE, OnAnotherNodeError
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.placement import Address, address_of, url_at

OF = 2
SHARD = 1
BUYERS = 6
SHARED = 3
"""Buyers 0 to 2 want the same codes as 3 to 5."""
REPEATED = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}

SELECT_OTHER_NODE = """
SELECT nodename, nodeport FROM pg_dist_node
WHERE shouldhaveshards AND nodeport <> %s ORDER BY groupid LIMIT 1
"""


@dataclass
class Cluster:
    """A service on a cluster."""

    url: str
    server: ServerThread
    api: Api

    def node(self, shard: int) -> Address:
        """The one that has the shard."""
        with psycopg.connect(self.url) as connection:
            row = connection.execute(SELECT_NODE, [f"coupon_{shard:02}"]).fetchone()
        assert row is not None
        return Address(*row[:3])

    def used(self, shard: int) -> Address:
        """The one that the service is connected to."""
        return address_of(self.server.server.shards[shard].database.settings.url)

    def move(self, shard: int) -> None:
        """To another node, and waits until the service goes on there."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            row = connection.execute(SELECT_OTHER_NODE, [self.node(shard).port]).fetchone()
            assert row is not None
            to = [f"coupon_{shard:02}", *row]
            until(lambda: _move(connection, to))
        until(lambda: self.used(shard) == self.node(shard))


def _move(connection: psycopg.Connection[TupleRow], to: list[Any]) -> bool:
    """Whether it could be moved: not while there is what an earlier move has left."""
    try:
        connection.execute("SELECT citus_schema_move(%s::regnamespace, %s, %s)", to)
    except psycopg.errors.InternalError as error:
        if "could not be cleaned up" not in str(error):
            raise
        connection.execute("CALL citus_cleanup_orphaned_resources()")
        return False
    return True


@pytest.fixture
def cluster(
    postgres_url: str,
    new_empty_database: Callable[[], AbstractContextManager[str]],
    redis_server_url: str,
) -> Iterator[Cluster]:
    require_cluster(postgres_url)
    with new_empty_database() as url:
        make_shards(url, of=OF)
        settings = settings_for(url, redis_server_url, shards=OF, default_business="")
        with ServerThread(settings) as server:
            api = Api(server.address)
            yield Cluster(url, server, api)
            api.close()


def test_each_shard_is_used_on_the_node_that_has_it(cluster: Cluster, tmp_path: Path) -> None:
    nodes = [cluster.node(shard) for shard in range(OF)]
    assert len(set(nodes)) == OF
    assert [cluster.used(shard) for shard in range(OF)] == nodes
    for shard in range(OF):
        cluster.api.book(codes=new_codes(1), business_id=business_in(shard, OF))
    done = run(tmp_path, "shards", "status", DATABASE_URL=cluster.url, COUPON_SHARDS=str(OF))
    assert done.returncode == 0
    for shard, line in enumerate(done.stdout.splitlines()[1:]):
        assert line.split()[1:3] == [str(nodes[shard]), f"coupon_{shard:02}"]
        assert line.endswith(" 1      ok")


def test_a_node_that_is_gone_is_looked_for_again(cluster: Cluster) -> None:
    database = cluster.server.server.shards[SHARD].database
    gone = Address("127.0.0.1", "1", "gone")
    database.settings = replace(database.settings, url=url_at(gone, database.settings.url))
    cluster.server.run(database.pool.drain())
    until(lambda: cluster.used(SHARD) == cluster.node(SHARD))
    until(lambda: database.pool.get_stats().get("pool_available"))
    cluster.api.book(codes=new_codes(1), business_id=business_in(SHARD, OF))


@dataclass
class Sale:
    """Buyers of the codes of a book, each of which can be redeemed once."""

    api: Api
    business_id: str
    codes: list[list[str]]
    is_over: Event = field(default_factory=Event)

    def buy(self, buyer: int) -> dict[str, str]:
        """Redeems code after code until it is over; the redemption of each that was got."""
        got: dict[str, str] = {}
        for code in self.codes[buyer % SHARED]:
            if self.is_over.is_set():
                break
            request = self.api.redeem_request(code, f"buyer-{buyer}", business_id=self.business_id)
            redemption_id = self._redeem(request)
            if redemption_id:
                got[code] = redemption_id
        else:
            raise AssertionError("too few codes")
        return got

    def _redeem(self, request: redemptions.RedeemCodeRequest) -> str:
        while True:
            try:
                return self.api.redemptions.RedeemCode(request, timeout=10).redemption.redemption_id
            except grpc.RpcError as error:
                code = cast("grpc.Call", error).code()
                if code is grpc.StatusCode.FAILED_PRECONDITION:
                    return ""
                if code not in REPEATED:
                    raise


def test_calls_and_the_ledger_go_on_while_a_shard_moves(cluster: Cluster) -> None:
    api, business = cluster.api, business_in(SHARD, OF)
    codes = [new_codes(3_000) for _ in range(SHARED)]
    book = api.book(codes=[code for of in codes for code in of], business_id=business)
    locked = api.book(
        codes=(to_lock := new_codes(3)),
        business_id=business,
        lock_policy=books.LOCK_POLICY_OPTIONAL,
    )
    followed: list[audit.AuditEvent] = []
    resume_token = ""

    def follow() -> None:
        nonlocal resume_token
        request = audit.WatchAuditEventsRequest(
            business_id=business, resume_token=resume_token, stop_at_end=True
        )
        for message in api.audit.WatchAuditEvents(request, timeout=60):
            resume_token = message.resume_token or resume_token
            followed.extend(message.events)

    def fence(code: str) -> int:
        lock = api.lock(code, f"user-{uuid4().hex}", business_id=business).lock
        return lock.fence

    sale = Sale(api, business, codes)
    with ThreadPoolExecutor(BUYERS) as threads:
        buying = [threads.submit(sale.buy, buyer) for buyer in range(BUYERS)]
        try:
            fences = [fence(to_lock[0])]
            for code in to_lock[1:]:  # there, and back
                follow()
                cluster.move(SHARD)
                fences.append(fence(code))
        finally:
            sale.is_over.set()
    follow()
    got = [it.result() for it in buying]
    redeemed = api.events(book_id=book.book_id, types=[audit.AUDIT_EVENT_TYPE_REDEEMED])
    assert sorted(it.code for it in redeemed) == sorted(code for of in got for code in of)
    assert {it.event_id for it in redeemed} == {one for of in got for one in of.values()}
    assert len(redeemed) == len({it.code for it in redeemed})
    stored = api.events(book_id=book.book_id) + api.events(book_id=locked.book_id)
    assert len(followed) == len({it.event_id for it in followed})
    assert {it.event_id for it in followed} == {it.event_id for it in stored}
    assert fences == sorted(set(fences))


NOTICE = f"DO $$ BEGIN RAISE NOTICE 'issuing SELECT {ASKED_ELSEWHERE}(1)'; END $$"


def test_what_another_node_was_asked_for_is_an_error(database_url: str) -> None:
    async def check() -> None:
        async with await Connection.connect(database_url, autocommit=True) as connection:
            connection.add_notice_handler(connection.notice)
            with pytest.raises(OnAnotherNodeError):
                await connection.execute(NOTICE)
            pipeline = Pipeline(connection)
            pipeline.add("BEGIN")
            pipeline.add(NOTICE)
            with pytest.raises(OnAnotherNodeError):
                await pipeline.run()
            await connection.rollback()
            assert connection.info.transaction_status == pq.TransactionStatus.IDLE

    asyncio.run(check())
