"""Mutants of what codes say for themselves, and of imports with users."""

# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
from typing import Any
from unittest import mock

from mutants.meeting import ALONE_S
from mutants.mutants import Mutant
from psycopg.conninfo import make_conninfo

from coupon_service.rules import code_lookup, refusals
from coupon_service.store.bulk import assigned_rows, imports
from coupon_service.store.commands import apply as applying
from coupon_service.store.pipeline import Connection


def own_limit_ignored() -> Mutant:
    """A code is redeemed as often as its book says."""
    return mock.patch.object(code_lookup, "book_of", _book_alone)


def own_limit_ignored_by_permits() -> Mutant:
    """Locks are counted against the limit of the book."""
    real: Any = refusals.__dict__["_no_permit"]

    def no_permit(lease: Any, code: Any, _: Any, state: Any) -> Any:
        return real(lease, code, state.books[code.book_id], state)

    return mock.patch.object(refusals, "_no_permit", no_permit)


def own_limit_not_stored() -> Mutant:
    """The database is told the limit of the book."""
    return mock.patch.object(applying, "book_of", _book_alone)


def own_end_ignored() -> Mutant:
    """A code is good for as long as its book is."""
    return mock.patch.object(refusals, "code_ended", return_value=())


def own_start_ignored() -> Mutant:
    """A code is good from when on its book is."""
    return mock.patch.object(refusals, "code_not_started", return_value=())


def assigned_outside_the_transaction() -> Mutant:
    """Codes get their users once they have been imported."""
    tasks = set[asyncio.Task[None]]()

    async def write(connection: Any, book: Any, write_set: Any) -> None:
        where = make_conninfo(connection.info.dsn, password=connection.info.password)

        async def later() -> None:
            await asyncio.sleep(ALONE_S)
            async with await Connection.connect(where, autocommit=True) as other:
                await assigned_rows.write_assignments(other, book, write_set)

        tasks.add(asyncio.create_task(later()))

    return mock.patch.object(imports, "write_assignments", write)


def users_of_imports_not_locked() -> Mutant:
    """Imports read what their users have, and let others change it."""

    async def select(connection: Any, book: Any, users: Any, *, lock: bool) -> Any:
        del lock
        return await assigned_rows.select_counts(connection, book, users, lock=False)

    return mock.patch.object(imports, "select_counts", select)


def _book_alone(_: object, book: Any) -> Any:
    return book
