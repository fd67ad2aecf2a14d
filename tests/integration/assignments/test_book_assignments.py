"""ListAssignments: who got the codes of a book, newest first, by state and time."""

from __future__ import annotations

from typing import Any

from grpc import StatusCode
from support.service import Api, assignments, books, new_codes, pages, refused, struct
from support.two_businesses import new_shop

from coupon_service.model import AssignmentState
from coupon_service.store.keyset import Position
from coupon_service.store.queries.assignment_pages import AssignmentFilter, select_assignments

ACTIVE = assignments.ASSIGNMENT_STATE_ACTIVE
REDEEMED = assignments.ASSIGNMENT_STATE_REDEEMED
REVOKED = assignments.ASSIGNMENT_STATE_REVOKED


def listed(api: Api, book_id: str, **filters: Any) -> list[assignments.Assignment]:
    request = assignments.ListAssignmentsRequest(book_id=book_id, page_size=2, **filters)
    found = pages(api.assignments.ListAssignments, request, "assignments")
    return [it for page in found for it in page]


def test_assignments_of_a_book_are_listed_newest_first_by_state(api: Api) -> None:
    names = new_codes(5)
    kept, used, taken, other, bearers = names
    book = api.book(codes=names, limits=books.BookLimits(max_redemptions_per_code=1))
    api.book(codes=(elsewhere := new_codes(1)))
    for code, user in ((kept, "ann"), (used, "bob"), (taken, "ann"), (other, "carol")):
        api.assign(code, user, metadata=struct(code=code))
    api.assign(elsewhere[0], "ann")
    api.redeem(used, "bob")
    api.revoke(taken, "ann")
    api.redeem(bearers, "dave")

    found = listed(api, book.book_id)
    assert [(it.code, it.user_id, it.state) for it in found] == [
        (other, "carol", ACTIVE),
        (taken, "ann", REVOKED),
        (used, "bob", REDEEMED),
        (kept, "ann", ACTIVE),
    ]
    assert [it.metadata for it in found] == [struct(code=it.code) for it in found]
    assert found[2].redemption_count == 1
    for state in (ACTIVE, REDEEMED, REVOKED):
        assert listed(api, book.book_id, state=state) == [it for it in found if it.state == state]
    middle = found[1].assign_time
    assert listed(api, book.book_id, start_time=middle) == found[:2]
    assert listed(api, book.book_id, end_time=middle) == found[2:]
    assert listed(api, book.book_id, start_time=middle, state=ACTIVE) == found[:1]


def test_a_code_is_shown_as_it_was_uploaded(api: Api) -> None:
    (name,) = new_codes(1)
    book = api.book(codes=[f"{name[:3]}-{name[3:]}".lower()])
    api.assign(name, "ann")
    (shown,) = listed(api, book.book_id)
    assert (shown.code, shown.display_code) == (name, f"{name[:3]}-{name[3:]}".lower())


def test_assignments_of_an_unknown_book_are_refused(api: Api) -> None:
    with refused("BOOK_NOT_FOUND", StatusCode.NOT_FOUND):
        listed(api, "00000000-0000-0000-0000-000000000000")


ASSIGNMENTS = """
INSERT INTO coupon_assignments (bucket, code, user_id, book_id, state, assign_time)
SELECT n %% 64, 'C' || n, 'ann', CASE WHEN n > 10000 THEN %s ELSE gen_random_uuid() END, 1, now()
FROM generate_series(1, 20000) AS n
"""
ROWS_READ = """
SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_user_tables WHERE relname = 'coupon_assignments'
"""


async def test_a_page_of_a_large_book_among_small_ones_reads_no_more_than_it_has(
    database_url: str,
) -> None:
    async with new_shop(database_url) as shop, shop.database.pool.connection() as connection:
        await connection.execute(ASSIGNMENTS, [shop.book.book_id])
        await connection.execute("ANALYZE coupon_assignments")
        wanted = AssignmentFilter(book_id=shop.book.book_id)
        read: list[int] = []
        for _ in range(2):
            await connection.execute("SELECT pg_stat_force_next_flush()")
            cursor = await connection.execute(ROWS_READ)
            read += [row[0] for row in await cursor.fetchall()]
            async with connection.transaction():
                found, _ = await select_assignments(connection, wanted, 50, None)
            assert len(found) == 50
        assert read[1] - read[0] <= 60


async def test_a_page_ends_where_enough_was_looked_at(database_url: str) -> None:
    async with new_shop(database_url) as shop:
        names = [f"CODE{number}" for number in range(9)]
        await shop.codes(shop.book, *names)
        for name in names:
            await shop.assign(name, "ann")
        await shop.revoke("CODE0", "ann")
        wanted = AssignmentFilter(book_id=shop.book.book_id, state=AssignmentState.REVOKED)

        async def page(after: Position | None) -> tuple[list[str], Position | None]:
            found, end = await shop.database.transaction(
                "list", lambda connection: select_assignments(connection, wanted, 5, after, 4)
            )
            return [it.code for it, _ in found], end

        seen: list[list[str]] = []
        position: Position | None = None
        while True:
            codes, position = await page(position)
            seen.append(codes)
            if position is None:
                break
        assert seen == [[], [], ["CODE0"]]
