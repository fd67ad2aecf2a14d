"""What has to catch the mutants of how the ledger is followed."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import psycopg
from mutants.harness import Stack
from support.ledger_follower import assert_followed
from support.ledger_writers import write
from support.service import Api, audit, unique
from support.store import opened
from support.waiting import until

from coupon_service.model import CodeState
from coupon_service.store import ledger_horizon
from coupon_service.store.ledger_horizon import LedgerHorizon

TURN = 11
"""An advisory lock: the last number is only read once it is free."""

IN_TURN = f"{ledger_horizon.LAST_NUMBER} FROM (SELECT pg_advisory_xact_lock({TURN})) AS turn"
WAITING = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 11 AND NOT granted"
PATIENT = {"lock_timeout_ms": 60_000, "statement_timeout_ms": 60_000}


def two_writers_in_flight(it: Stack) -> None:
    """What the first has drawn is not complete, though the second has committed."""

    async def looked_at() -> None:
        async with opened(it.database_url) as database:
            horizon = LedgerHorizon(database)
            with (
                psycopg.connect(it.database_url) as first,
                psycopg.connect(it.database_url) as second,
            ):
                write(first)
                write(second)
                await horizon.advance()
                drawn = horizon.last_number
                second.commit()
                complete = await horizon.advance()
                assert complete is None or complete.number < drawn - 1

    asyncio.run(looked_at())


def a_writer_between_the_reads(it: Stack) -> None:
    """What was drawn before the last number was read is waited for."""

    async def looked_at() -> None:
        async with opened(it.database_url, **PATIENT) as database:
            horizon = LedgerHorizon(database)
            with (
                psycopg.connect(it.database_url) as writer,
                psycopg.connect(it.database_url, autocommit=True) as other,
                mock.patch.object(ledger_horizon, "LAST_NUMBER", IN_TURN),
            ):
                other.execute("SELECT pg_advisory_lock(%s)", [TURN])
                looking = asyncio.create_task(horizon.advance())
                await asyncio.to_thread(until, lambda: other.execute(WAITING).fetchone() == (1,))
                write(writer)
                other.execute("SELECT pg_advisory_unlock(%s)", [TURN])
                complete = await looking
                assert complete is None or complete.number < horizon.last_number

    asyncio.run(looked_at())


@contextmanager
def _late_writer(it: Stack) -> Generator[psycopg.Connection[Any]]:
    """A transaction that has its id before all others of the attack."""
    with psycopg.connect(it.database_url) as late:
        late.execute("SELECT pg_current_xact_id()")
        yield late


def reader_beside_a_late_commit(it: Stack) -> None:
    """An event that is committed after a later one is read, before it."""
    api = it.apis[0]
    book = api.book(codes=1)
    with _late_writer(it) as late:
        write(late, book_id=book.book_id)
        api.assign_random(book.book_id, unique("user"))
        events, token = _read_while_held_up(api)
        late.commit()
    _assert_read(it, book.book_id, [*events, *_rest(api, token)])


def reader_beside_an_early_id(it: Stack) -> None:
    """Of a code is read first what happened first, whoever had its id first."""
    api = it.apis[0]
    code = api.code()
    book = api.get_code(code).book_id
    with _late_writer(it) as late:
        api.redeem(code, unique("user"))
        write(late, book_id=book, code=code, states=(CodeState.REDEEMED, CodeState.DISABLED))
        events, token = _read_while_held_up(api)
        late.commit()
    _assert_read(it, book, [*events, *_rest(api, token)])


def _read_while_held_up(api: Api) -> tuple[list[audit.AuditEvent], str]:
    """The events up to when it is said that there are no more for now."""
    stream = api.audit.WatchAuditEvents(audit.WatchAuditEventsRequest())
    events: list[audit.AuditEvent] = []
    try:
        for message in stream:
            events += message.events
            if message.HasField("stall") or message.HasField("complete_time"):
                return events, message.resume_token
    finally:
        stream.cancel()
    raise AssertionError("the stream has ended")


def _rest(api: Api, token: str) -> list[audit.AuditEvent]:
    request = audit.WatchAuditEventsRequest(resume_token=token, stop_at_end=True)
    return [event for message in api.audit.WatchAuditEvents(request) for event in message.events]


def _assert_read(it: Stack, book_id: str, events: list[audit.AuditEvent]) -> None:
    with psycopg.connect(it.database_url) as connection:
        assert_followed(events, connection, {book_id})
