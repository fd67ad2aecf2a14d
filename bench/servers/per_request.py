"""The obvious implementation: a transaction per request, which locks the row of the code.

    DATABASE_URL=postgresql://… python -m bench.servers.per_request 127.0.0.1:50101 2

The same contract, schema and effects as the service: the count of the code, the ledger row, the
counters of the book, one effect per attempt, one redemption per order. It has only what the
benchmark calls: RedeemCode by bearers, in books without locking and without limits per user. No
authentication, no log, no metrics.
"""

# ruff: noqa: N802 - the names are those of the contract

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, NoReturn

import grpc
import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from psycopg import AsyncConnection
from psycopg.rows import TupleRow, class_row
from psycopg_pool import AsyncConnectionPool

from bench.servers.workers import run_workers
from coupon_service.model import CodeState, EventType, event_id, fingerprint
from coupon_service.model.codes import bucket_of
from coupon_service.model.normalization import normalize_code
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money
from coupon_service.v1.redemption_service_pb2_grpc import (
    RedemptionServiceServicer,
    add_RedemptionServiceServicer_to_server,
)

POOL_SIZE: Final = 20
"""Connections of all workers together. With a hot code, more would only wait for its row."""

CALLER: Final = "anonymous"

Connection = AsyncConnection[TupleRow]

LOCK_CODE: Final = """
SELECT c.state, c.redemptions, c.assignments, b.book_id, b.state AS book_state, b.currency_code,
       b.percent_off_basis_points, b.max_redemptions_per_code, b.start_time, b.end_time
FROM coupon_codes AS c JOIN coupon_books AS b USING (book_id)
WHERE c.bucket = %s AND c.code = %s
FOR NO KEY UPDATE OF c
"""
FIND_ATTEMPT: Final = """
SELECT fingerprint, event_time, discount_minor, code_redemptions, code_redemption_limit
FROM redemption_audit WHERE event_id = %s AND bucket = %s
"""
FIND_ORDER: Final = """
SELECT 1 FROM redemption_audit AS r
WHERE r.bucket = %s AND r.code = %s AND r.order_id = %s AND r.type = 16
  AND NOT EXISTS (SELECT FROM redemption_audit AS undone
                  WHERE undone.code = r.code AND undone.order_id = r.order_id
                    AND undone.redemption_id = r.event_id)
"""
COUNT_CODE: Final = """
UPDATE coupon_codes SET redemptions = redemptions + 1, redemption_limit = %s, state = %s
WHERE bucket = %s AND code = %s
"""
COUNT_BOOK: Final = """
INSERT INTO coupon_book_counters AS s (
    book_id, bucket, available, assigned, redeemed, disabled, assignments, redemptions, rollbacks,
    discount_minor)
VALUES (%s, %s, %s, %s, %s, 0, 0, 1, 0, %s)
ON CONFLICT (book_id, bucket) DO UPDATE
SET available = s.available + excluded.available, assigned = s.assigned + excluded.assigned,
    redeemed = s.redeemed + excluded.redeemed, redemptions = s.redemptions + 1,
    discount_minor = s.discount_minor + excluded.discount_minor
"""
WRITE_LEDGER: Final = """
INSERT INTO redemption_audit (
    event_id, bucket, type, event_time, book_id, code, user_id, order_id, caller, peer, user_agent,
    request_id, fingerprint, state_before, state_after, order_amount_minor, discount_minor,
    currency_code, code_redemptions, code_redemption_limit)
VALUES (%s, %s, 16, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
"""


@dataclass(frozen=True, slots=True)
class CodeRow:
    """A code, with the columns of its book that a redemption needs."""

    state: int
    redemptions: int
    assignments: int
    book_id: Any
    book_state: int
    currency_code: str
    percent_off_basis_points: int
    max_redemptions_per_code: int
    start_time: datetime | None
    end_time: datetime | None

    def refusal(self, now: datetime) -> str:
        """The reason why the code cannot be redeemed; empty when it can."""
        if self.book_state != 2 or (self.start_time is not None and now < self.start_time):
            return "BOOK_NOT_ACTIVE"
        if self.end_time is not None and now >= self.end_time:
            return "BOOK_EXPIRED"
        if self.state == CodeState.DISABLED:
            return "CODE_DISABLED"
        if self.max_redemptions_per_code and self.redemptions >= self.max_redemptions_per_code:
            return "CODE_ALREADY_REDEEMED"
        return ""

    def state_after(self) -> int:
        """The state of the code after one more redemption."""
        limit = self.max_redemptions_per_code
        if limit and self.redemptions + 1 >= limit:
            return CodeState.REDEEMED
        return CodeState.ASSIGNED if self.assignments else CodeState.AVAILABLE


class Redemptions(RedemptionServiceServicer):
    """Redeems one code at a time."""

    def __init__(self, pool: AsyncConnectionPool[Connection]) -> None:
        self._pool = pool

    async def RedeemCode(
        self, request: pb.RedeemCodeRequest, context: Any
    ) -> pb.RedeemCodeResponse:
        """Redeem the code in one transaction."""
        async with self._pool.connection() as connection, connection.transaction():
            return await _redeem(connection, request, context)


async def _redeem(
    connection: Connection, request: pb.RedeemCodeRequest, context: Any
) -> pb.RedeemCodeResponse:
    code, now = normalize_code(request.code), datetime.now(UTC)
    bucket, amount = bucket_of(code), request.order_amount.amount_minor
    row = await _lock_code(connection, bucket, code)
    if row is None:
        await _refuse(context, grpc.StatusCode.NOT_FOUND, "CODE_NOT_FOUND")
    attempt = event_id(bucket, EventType.REDEEMED, CALLER, request.request_id, code)
    parameters = fingerprint(request.user_id, request.order_id, amount)
    earlier = await _one(connection, FIND_ATTEMPT, (attempt, bucket))
    if earlier is not None:
        recorded, event_time, discount, redemptions, limit = earlier
        if recorded != parameters:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_ID_REUSED")
        answer = _answer(request, row, attempt, event_time, discount, redemptions, limit)
        answer.replayed = True
        return answer
    if refusal := row.refusal(now):
        await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, refusal)
    if await _one(connection, FIND_ORDER, (bucket, code, request.order_id)) is not None:
        await _refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "ORDER_ALREADY_REDEEMED")
    discount = amount * row.percent_off_basis_points // 10_000
    state, limit = row.state_after(), row.max_redemptions_per_code
    await connection.execute(COUNT_CODE, (limit, state, bucket, code))
    change = {row.state: -1, state: 1} if state != row.state else {}
    states = (CodeState.AVAILABLE, CodeState.ASSIGNED, CodeState.REDEEMED)
    counts = [change.get(it, 0) for it in states]
    await connection.execute(COUNT_BOOK, (row.book_id, bucket, *counts, discount))
    await connection.execute(
        WRITE_LEDGER,
        (
            *(attempt, bucket, now, row.book_id, code, request.user_id, request.order_id),
            *(CALLER, context.peer(), "", request.request_id, parameters, row.state, state),
            *(amount, discount, row.currency_code, row.redemptions + 1, limit),
        ),
    )
    return _answer(request, row, attempt, now, discount, row.redemptions + 1, limit)


async def _lock_code(connection: Connection, bucket: int, code: str) -> CodeRow | None:
    async with connection.cursor(row_factory=class_row(CodeRow)) as cursor:
        await cursor.execute(LOCK_CODE, (bucket, code))
        return await cursor.fetchone()


async def _one(connection: Connection, statement: Any, parameters: Any) -> TupleRow | None:
    return await (await connection.execute(statement, parameters)).fetchone()


async def _refuse(context: Any, status: grpc.StatusCode, reason: str) -> NoReturn:
    await context.abort(status, reason)
    raise AssertionError("abort raises")


def _answer(
    request: pb.RedeemCodeRequest,
    row: CodeRow,
    attempt: object,
    redeem_time: datetime,
    discount: int,
    redemptions: int,
    limit: int,
) -> pb.RedeemCodeResponse:
    time = Timestamp()
    time.FromDatetime(redeem_time)
    return pb.RedeemCodeResponse(
        redemption=pb.Redemption(
            redemption_id=str(attempt),
            code=normalize_code(request.code),
            book_id=str(row.book_id),
            user_id=request.user_id,
            order_id=request.order_id,
            state=pb.REDEMPTION_STATE_SUCCEEDED,
            order_amount=request.order_amount,
            discount=Money(amount_minor=discount, currency_code=row.currency_code),
            redeem_time=time,
        ),
        counts=pb.RedemptionCounts(
            code_redemption_count=redemptions,
            code_max_redemptions=limit,
            used_up=bool(limit and redemptions >= limit),
        ),
    )


async def serve(server: grpc.aio.Server, pool_size: int) -> None:
    """Open the pool of a worker, and add the servicer."""
    pool: AsyncConnectionPool[Connection] = AsyncConnectionPool(
        os.environ["DATABASE_URL"], min_size=pool_size, max_size=pool_size, timeout=30, open=False
    )
    await pool.open(wait=True)
    servicer = Redemptions(pool)  # pyright: ignore[reportAbstractUsage] - others: UNIMPLEMENTED
    add_RedemptionServiceServicer_to_server(servicer, server)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("workers", type=int)
    arguments = parser.parse_args()
    serve_part = partial(serve, pool_size=max(POOL_SIZE // arguments.workers, 1))
    run_workers(serve_part, arguments.address, arguments.workers)
