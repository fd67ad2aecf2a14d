"""What orders have of the coupons of books that are not INDEPENDENT: locked, read and written.

An order is locked after the counters of users and before those of books.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, LiteralString
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import (
    Adjust,
    Book,
    BookOnOrder,
    Command,
    Event,
    OrderCoupons,
    OrderPolicy,
    OrderRef,
    Redeem,
    Rollback,
    State,
    WriteSet,
)
from coupon_service.rules import order_of
from coupon_service.store.arrays import text_array
from coupon_service.store.columns import Column, Columns
from coupon_service.store.pipeline import Pipeline, Rows

ENSURE_ORDERS: Final = """
INSERT INTO coupon_orders (business_id, order_id, order_user_id)
SELECT * FROM unnest(%s::text[], %s::text[], %s::text[])
ON CONFLICT DO NOTHING
"""
SELECT_ORDERS: Final[LiteralString] = """
SELECT business_id, order_id, order_user_id,
    o.currency_code, o.discount_minor, o.discount_limit_minor
FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted (business_id, order_id, order_user_id)
JOIN coupon_orders AS o USING (business_id, order_id, order_user_id)
"""
LOCK_ORDERS: Final[LiteralString] = (
    SELECT_ORDERS + "ORDER BY business_id, order_id, order_user_id FOR NO KEY UPDATE OF o"
)
# What the books say of orders is what they say now, as of all their rules.
SELECT_ORDER_BOOKS: Final = """
SELECT business_id, order_id, order_user_id,
    book_id, b.redemptions, book.order_policy, book.exclusive_group
FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted (business_id, order_id, order_user_id)
JOIN coupon_order_books AS b USING (business_id, order_id, order_user_id)
JOIN coupon_books AS book USING (book_id, business_id)
"""
# With the discounts of the orders, read after those were locked: what goes over to the order of an
# erased user meanwhile is seen here.
SELECT_ORDER_BOOKS_OF_ALL: Final = """
SELECT business_id, order_id, order_user_id,
    book_id, b.redemptions, book.order_policy, book.exclusive_group,
    o.currency_code, o.discount_minor, o.discount_limit_minor
FROM unnest(%s::text[], %s::text[], %s::text[]) AS wanted (business_id, order_id, order_user_id)
JOIN coupon_orders AS o USING (business_id, order_id, order_user_id)
JOIN coupon_order_books AS b USING (business_id, order_id, order_user_id)
JOIN coupon_books AS book USING (book_id, business_id)
"""

DELETE_ORDERS: Final = """
DELETE FROM coupon_orders AS o
USING unnest(%s::text[], %s::text[], %s::text[]) AS d (business_id, order_id, order_user_id)
WHERE o.business_id = d.business_id AND o.order_id = d.order_id
    AND o.order_user_id = d.order_user_id
"""


def orders_of(command: Command, book: Book) -> tuple[OrderRef, ...]:
    """The order of a redemption, or of one that is rolled back or adjusted. Nothing else knows
    orders, locks neither."""
    of = command.redemption if isinstance(command, (Rollback, Adjust)) else command
    if not isinstance(of, (Redeem, Event)) or not of.order_id:
        return ()
    return (order_of(book, of.order_id, of.order_user_id),)


def select_order_coupons(
    pipeline: Pipeline,
    orders: Collection[OrderRef],
    erased: Collection[OrderRef],
    *,
    lock: bool,
) -> tuple[Rows, Rows]:
    """Adds what reads orders, in the order that all batches lock, and then the books on them; with
    `erased`, what these orders of erased users have, as well."""
    arrays = _arrays(orders)
    if lock:
        pipeline.add(ENSURE_ORDERS, arrays)
    rows = pipeline.add(LOCK_ORDERS if lock else SELECT_ORDERS, arrays)
    if erased:
        return rows, pipeline.add(SELECT_ORDER_BOOKS_OF_ALL, _arrays((*orders, *erased)))
    return rows, pipeline.add(SELECT_ORDER_BOOKS, arrays)


def delete_unused_orders(pipeline: Pipeline, state: State) -> None:
    """Adds what deletes orders of which nothing was redeemed after all: `select_order_coupons` made
    their rows to lock them, and no event names them to `EraseUser`."""
    unused = [order for order, coupons in state.order_coupons.items() if not coupons.books]
    if unused:
        pipeline.add(DELETE_ORDERS, _arrays(unused))


def _arrays(orders: Iterable[OrderRef]) -> tuple[str, str, str]:
    businesses, ids, users = zip(*sorted(orders), strict=True)
    return text_array(businesses), text_array(ids), text_array(users)


def put_order_coupons(
    order_rows: Iterable[TupleRow], book_rows: Iterable[TupleRow], state: State
) -> None:
    """Puts what was read into the state."""
    books: dict[OrderRef, tuple[BookOnOrder, ...]] = {}
    totals_of: dict[OrderRef, Sequence[Any]] = {}
    for business_id, order_id, user_id, book_id, redemptions, policy, group, *totals in book_rows:
        on_order = BookOnOrder(book_id, redemptions, OrderPolicy(policy), group)
        order = business_id, order_id, user_id
        books[order] = (*books.get(order, ()), on_order)
        if totals:
            totals_of[order] = totals
    for business_id, order_id, user_id, *totals in order_rows:
        totals_of[business_id, order_id, user_id] = totals
    for order, totals in totals_of.items():
        state.order_coupons[order] = OrderCoupons(*totals, books=books.get(order, ()))


# In both, counts are added to and never set, and a limit is written with what was counted against
# it: a decision on stale rows could not get past the CHECKs of the tables.

ORDER_CHANGES: Final = Columns[tuple[OrderRef, OrderCoupons, OrderCoupons]](
    Column("business_id", "text", lambda it: it[0][0]),
    Column("order_id", "text", lambda it: it[0][1]),
    Column("order_user_id", "text", lambda it: it[0][2]),
    Column("currency_code", "text", lambda it: it[2].currency_code),
    Column("discount_minor", "bigint", lambda it: it[2].discount_minor - it[1].discount_minor),
    Column("discount_limit_minor", "bigint", lambda it: it[2].amount_minor),
)

UPDATE_ORDERS: Final[LiteralString] = f"""
UPDATE coupon_orders AS o
SET currency_code = d.currency_code,
    discount_minor = o.discount_minor + d.discount_minor,
    discount_limit_minor = CASE WHEN d.discount_minor > 0 THEN d.discount_limit_minor
                                ELSE o.discount_limit_minor END
FROM unnest(
    {ORDER_CHANGES.arrays}) AS d (
    {ORDER_CHANGES.names})
WHERE o.business_id = d.business_id AND o.order_id = d.order_id
    AND o.order_user_id = d.order_user_id
"""

OrderBook = tuple[OrderRef, UUID, int, int]
"""An order, a book, how many redemptions of it are added, and how many the order may have."""

ORDER_BOOK_CHANGES: Final = Columns[OrderBook](
    Column("business_id", "text", lambda it: it[0][0]),
    Column("order_id", "text", lambda it: it[0][1]),
    Column("order_user_id", "text", lambda it: it[0][2]),
    Column("book_id", "uuid", lambda it: it[1]),
    Column("redemptions", "integer", lambda it: it[2]),
    Column("redemption_limit", "integer", lambda it: it[3]),
)

INSERT_ORDER_BOOKS: Final[LiteralString] = f"""
INSERT INTO coupon_order_books (
    {ORDER_BOOK_CHANGES.names})
SELECT * FROM unnest(
    {ORDER_BOOK_CHANGES.arrays})
"""
UPDATE_ORDER_BOOKS: Final[LiteralString] = f"""
UPDATE coupon_order_books AS b
SET redemptions = b.redemptions + d.redemptions,
    redemption_limit = CASE WHEN d.redemptions > 0 THEN d.redemption_limit
                            ELSE b.redemption_limit END
FROM unnest(
    {ORDER_BOOK_CHANGES.arrays}) AS d (
    {ORDER_BOOK_CHANGES.names})
WHERE b.business_id = d.business_id AND b.order_id = d.order_id
    AND b.order_user_id = d.order_user_id AND b.book_id = d.book_id
"""


def update_orders(pipeline: Pipeline, write_set: WriteSet, books: Mapping[UUID, Book]) -> None:
    """Adds what writes what is on orders now."""
    changes = [(order, *rows) for order, rows in write_set.orders.items()]
    pipeline.add(UPDATE_ORDERS, ORDER_CHANGES.array_parameters(changes))
    # Two statements: the counts of an update are differences, which the CHECKs of an insert refuse.
    new: list[OrderBook] = []
    changed: list[OrderBook] = []
    for order, before, after in changes:
        known = {it.book_id: it.redemptions for it in before.books}
        for it in after.books:
            added = it.redemptions - known.get(it.book_id, 0)
            rows = changed if it.book_id in known else new
            if added or rows is new:
                limit = books[it.book_id].limits.max_redemptions_per_order
                rows.append((order, it.book_id, added, limit))
    if new:
        pipeline.add(INSERT_ORDER_BOOKS, ORDER_BOOK_CHANGES.array_parameters(new))
    if changed:
        pipeline.add(UPDATE_ORDER_BOOKS, ORDER_BOOK_CHANGES.array_parameters(changed))
