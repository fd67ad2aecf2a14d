"""Books of two businesses and commands on their codes, on the store alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from prometheus_client import CollectorRegistry
from support.store import Clock, activate, call, make_book, opened

from coupon_service.model import (
    Assign,
    AssignmentPolicy,
    Book,
    BookLimits,
    Command,
    CommandGroup,
    Done,
    Event,
    EventType,
    LockPolicy,
    Redeem,
    Revoke,
    Rollback,
    SetCodeEnabled,
    bucket_of_event,
    event_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.store.books import Books
from coupon_service.store.bulk.imports import CodeImporter
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.commands.executor import Executor
from coupon_service.store.database import Database
from coupon_service.store.keyset import Position
from coupon_service.store.queries.reads import Reads
from coupon_service.telemetry.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Shop:
    """A store with a bearer book of many-use codes, and a book of another business."""

    database: Database
    books: Books
    reads: Reads
    importer: CodeImporter
    executor: Executor
    book: Book
    other: Book

    async def codes(self, book: Book, *codes: str) -> None:
        """Import codes."""
        result = await self.importer.import_chunk(book.book_id, 1, codes, call("import"))
        assert result.created == len(codes)

    async def do(self, command: Command) -> Event:
        ((outcome,),) = await self.executor.execute([CommandGroup((command,))])
        assert isinstance(outcome, Done), outcome
        return outcome.event

    async def assign(self, code: str, user_id: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.ASSIGNED, code, user_id)
        return await self.do(
            Assign(call=call("a"), code=code, event_id=attempt, fingerprint=1, user_id=user_id)
        )

    async def revoke(self, code: str, user_id: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.REVOKED, code, user_id)
        return await self.do(
            Revoke(call=call("v"), code=code, event_id=attempt, fingerprint=1, user_id=user_id)
        )

    async def redeem(self, code: str, user_id: str, order_id: str = "") -> Event:
        attempt = event_id(bucket_of(code), EventType.REDEEMED, code, user_id, order_id)
        return await self.do(
            Redeem(
                call=call(f"r-{order_id}"),
                code=code,
                event_id=attempt,
                fingerprint=1,
                user_id=user_id,
                order_id=order_id,
            )
        )

    async def roll_back(self, redemption: Event) -> Event:
        bucket = bucket_of_event(redemption.event_id)
        return await self.do(
            Rollback(
                call=call("b"),
                code=redemption.code or "",
                event_id=event_id(bucket, EventType.ROLLED_BACK, redemption.event_id),
                fingerprint=1,
                user_id=redemption.user_id or "",
                redemption=redemption,
            )
        )

    async def disable(self, code: str) -> Event:
        attempt = event_id(bucket_of(code), EventType.CODE_DISABLED, code)
        return await self.do(
            SetCodeEnabled(
                call=call("d"),
                type=EventType.CODE_DISABLED,
                code=code,
                event_id=attempt,
                fingerprint=1,
            )
        )


@asynccontextmanager
async def new_shop(database_url: str) -> AsyncGenerator[Shop]:
    """A shop on this database."""
    clock = Clock()
    async with opened(database_url) as database:
        books = Books(database, clock)
        limits = BookLimits(max_redemptions_per_code=100)
        bearer = AssignmentPolicy.BEARER
        made = [
            await activate(
                books,
                await make_book(
                    books,
                    name,
                    business_id=business_id,
                    limits=limits,
                    assignment_policy=bearer,
                    lock_policy=LockPolicy.OFF,
                ),
            )
            for name, business_id in (("spring", "bakery"), ("summer", "butcher"))
        ]
        yield Shop(
            database,
            books,
            Reads(database),
            CodeImporter(database, BulkLane(database), clock),
            Executor(database, clock, Metrics(CollectorRegistry())),
            *made,
        )


async def all_pages(
    page: Callable[[Position | None], Awaitable[tuple[Sequence[T], Position | None]]], size: int
) -> list[T]:
    """The items of all pages. Asserts that all pages but the last are full."""
    collected: list[T] = []
    position: Position | None = None
    while True:
        items, position = await page(position)
        collected += items
        if position is None:
            return collected
        assert len(items) == size
