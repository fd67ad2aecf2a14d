"""What catches mutants of archives of the ledger."""

from __future__ import annotations

import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest import mock
from uuid import UUID

import psycopg
from mutants.harness import Stack
from mutants.reuse_harness import BOOK, code_in
from mutants.scope_harness import finished
from support.calls import tried
from support.person import erase
from support.sealed_now import seal_ledger
from support.service import books, euros, new_codes, unique

from coupon_service.store.archiving import archive as archiving
from coupon_service.store.archiving.restore import restore

EVER = datetime.max.replace(tzinfo=UTC)


@contextmanager
def archived(it: Stack, book_id: str) -> Generator[Path]:
    """The file with the events of the book."""
    seal_ledger(it.database_url)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (done,) = archiving.archive(it.database_url, folder, EVER, [UUID(book_id)])
        yield folder / done.file_name


def repeat_in_the_book_that_has_the_code_now(it: Stack) -> None:
    """What was redeemed in an archived book is not redeemed again in the next one."""
    finished(it)
    api = it.apis[0]
    (code,), once = new_codes(1), unique("request")
    before = api.book(codes=[code], **BOOK).book_id
    api.redeem(code, "user", request_id=once)
    api.close_book(before)
    with archived(it, before):
        after = api.book(codes=[code], **BOOK).book_id
        assert tried(lambda: api.redeem(code, "user", request_id=once)) == "ARCHIVED"
    assert code_in(api, code, after).redemption_count == 0
    it.conserved()


def roll_back_of_what_is_being_archived(it: Stack) -> None:
    """What the file says of a redemption stays so."""
    api = it.apis[0]
    code = api.code()
    done = api.redeem(code, "user").redemption
    api.close_book(done.book_id)

    def meanwhile(_: object) -> None:
        assert tried(lambda: api.rollback(done.redemption_id)) == "ARCHIVED"

    with mock.patch.object(archiving, "wait_for_others", meanwhile), archived(it, done.book_id):
        it.conserved()


def sums_of_what_was_archived(it: Stack) -> None:
    """Counters equal opening balances and ledger, before, while and after a book is restored."""
    api = it.apis[0]
    names = new_codes(3)
    book_id = api.book(codes=names, limits=books.BookLimits(max_redemptions_per_code=2)).book_id
    done = [api.redeem(code, "user").redemption.redemption_id for code in names]
    api.rollback(done[0])
    api.close_book(book_id)
    with archived(it, book_id) as file:
        it.conserved()
        with file.open("rb") as opened:
            restore(it.database_url, opened)
    it.conserved()
    assert tried(lambda: api.rollback(done[0])) == "ALREADY_ROLLED_BACK"
    assert tried(lambda: api.rollback(done[1])) == "OK"


def order_of_an_archived_user(it: Stack) -> None:
    """What an order has of a user is erased although the ledger has it no more, and still binds."""
    api = it.apis[0]
    user, order = unique("user"), {"order_id": unique("order"), "order_amount": euros(1_000)}
    wish: dict[str, Any] = {
        "order_policy": books.ORDER_POLICY_EXCLUSIVE,
        "business_id": unique("business"),
    }
    (code, other), left = new_codes(2), "SELECT FROM coupon_orders WHERE order_id = %s"
    book_id = api.book(codes=[code], **wish).book_id
    api.book(codes=[other], **wish)
    api.redeem(code, user, **order)
    api.close_book(book_id)
    with archived(it, book_id):
        it.conserved()
        erase(api, user)
        with psycopg.connect(it.database_url) as connection:
            assert connection.execute(left, [order["order_id"]]).fetchall() == []
        assert tried(lambda: api.redeem(other, "user", **order)) == "COUPONS_NOT_COMBINABLE"
        it.conserved()
