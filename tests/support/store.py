"""A Database, books and calls for tests of the store."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from prometheus_client import CollectorRegistry

from coupon_service.model import (
    Benefit,
    Book,
    Call,
    EventType,
    event_id,
)
from coupon_service.store.books import Books
from coupon_service.store.database import Database
from coupon_service.store.sessions import DatabaseSettings
from coupon_service.telemetry.metrics import Metrics

BULK: dict[str, Any] = {
    "application_name": "coupon_service/2 bulk",
    "pool_max_size": 1,
    "pool_timeout_ms": 500,
    "lock_timeout_ms": 100,
    "unbatched_max": 1,
}
"""Settings of a connection for bulk work."""

START = datetime(2021, 3, 1, 12, 0, tzinfo=UTC)


class Clock:
    """A clock that advances by a second on each reading."""

    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        self.now += timedelta(seconds=1)
        return self.now


@asynccontextmanager
async def opened(url: str, **fields: Any) -> AsyncGenerator[Database]:
    """An open Database on this URL. `fields`: of its settings."""
    settings = DatabaseSettings(
        url=url,
        pool_min_size=1,
        pool_max_size=4,
        pool_timeout_ms=10_000,
        lock_timeout_ms=2_000,
        statement_timeout_ms=5_000,
        idle_in_transaction_timeout_ms=10_000,
        tcp_user_timeout_ms=10_000,
        attempts_max=3,
        unbatched_max=2,
    )
    database = Database(replace(settings, **fields), Metrics(CollectorRegistry()))
    await database.open()
    try:
        yield database
    finally:
        await database.close()


def call(request_id: str, caller: str = "shop", business_id: str = "") -> Call:
    """A call of the shop."""
    return Call(caller, request_id, "ipv4:127.0.0.1:5", "tests", business_id)


def new_book(name: str = "spring", business_id: str = "bakery", **fields: Any) -> Book:
    """A book that is not stored, with the id that `make_book` would give it."""
    attempt = event_id(7, EventType.BOOK_CREATED, "shop", f"create-{name}", business_id)
    values: dict[str, Any] = {
        "discount": Benefit("a gift"),
        "create_time": START,
        "update_time": START,
        "min_code_length": 1,  # of the tests
        **fields,
    }
    return Book(book_id=attempt, business_id=business_id, name=name, **values)


async def make_book(
    books: Books, name: str = "spring", business_id: str = "bakery", **fields: Any
) -> Book:
    """A book in state DRAFT."""
    book = new_book(name, business_id, **fields)
    stored, _ = await books.create(book, call(f"create-{name}"), book.book_id, 1)
    return stored


async def activate(books: Books, book: Book) -> Book:
    """The book, activated."""
    active, _ = await books.transition(
        book.book_id, EventType.BOOK_ACTIVATED, None, call("activate"), 1
    )
    return active
