"""Codes in the CLOSED books that had them: read for commands that name such a book, and for repeats
of what was done in one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from uuid import UUID

from coupon_service.model import AssignRandom, Book, BookState, CodeCommand, CodeKey, Command, State
from coupon_service.model.scopes import scope_of_book, scope_of_business
from coupon_service.rules import book_named
from coupon_service.store.arrays import uuid_array
from coupon_service.store.books import SELECT_BOOKS
from coupon_service.store.commands.read_set import ReadSet
from coupon_service.store.past_codes import select_past_codes
from coupon_service.store.pipeline import Pipeline
from coupon_service.store.rows import book_from_row, past_code_from_row


def later_scopes(commands: Iterable[Command], wanted: ReadSet, state: State) -> dict[UUID, int]:
    """Scopes in which codes of these commands have to be looked for, since the CLOSED books that
    they name do not have them any more: see `LoadMemory`."""
    found: dict[UUID, int] = {}
    for command, book in _in_closed_books(commands, wanted, state):
        if not scope_of_book(book.book_id) and (book.book_id, command.code) not in state.codes:
            scope = scope_of_business(book.business_id)
            if (command.code, scope) not in wanted.codes:
                found[book.book_id] = scope
    return found


async def load_past_codes(
    pipeline: Pipeline, commands: Iterable[Command], wanted: ReadSet, state: State
) -> None:
    """Reads what codes were in CLOSED books: those that commands name, and those in which they were
    carried out before. In no round trip where there are none of these.

    The codes of the commands are locked; so nobody changes what is read here.
    """
    if not (state.events or wanted.books):
        return
    keys: set[CodeKey] = {(it.book_id, it.code) for it in state.events.values() if it.code}
    keys -= state.codes.keys()
    for command, book in _in_closed_books(commands, wanted, state):
        key = book.book_id, command.code
        # An end user is not to notice whether the book has the code.
        if key not in state.codes or command.call.end_user:
            keys.add(key)
    if not keys:
        return
    rows = select_past_codes(pipeline, keys)
    missing = {book_id for book_id, _ in keys} - state.books.keys()
    book_rows = pipeline.add(SELECT_BOOKS, (uuid_array(missing),)) if missing else ()
    await pipeline.run()
    for row in rows:
        state.put_code(past_code_from_row(row))
    for row in book_rows:
        book = book_from_row(row)
        state.books[book.book_id] = book


def _in_closed_books(
    commands: Iterable[Command], wanted: ReadSet, state: State
) -> Iterator[tuple[CodeCommand, Book]]:
    """The commands that name a CLOSED book of their business."""
    books = (state.books.get(it) for it in wanted.books)
    closed = {it.book_id: it for it in books if it and it.state is BookState.CLOSED}
    if not closed:
        return
    for command in commands:
        if isinstance(command, AssignRandom):
            continue
        book = closed.get(book_id) if (book_id := book_named(command)) else None
        if book is not None and command.call.business_id in ("", book.business_id):
            yield command, book
