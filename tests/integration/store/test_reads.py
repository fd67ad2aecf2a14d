"""Codes, assignments and redemptions are found, page by page, by their owners alone."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

import pytest
from support.store import make_book
from support.two_businesses import Shop, all_pages

from coupon_service.errors import (
    BookNotFound,
    CodeChecksumInvalid,
    CodeNotFound,
    InvalidArgument,
    RedemptionNotFound,
)
from coupon_service.model import (
    AssignmentState,
    Book,
    Code,
    CodeState,
    Event,
    EventType,
)
from coupon_service.model.codes import CodeFormat, bucket_of, generate
from coupon_service.store.keyset import Position
from coupon_service.store.queries.reads import AuditFilter

NOBODY = UUID(int=9)


# --- codes --------------------------------------------------------------------------------------


async def test_a_code_is_found_with_its_book_by_its_own_business(shop: Shop) -> None:
    await shop.codes(shop.book, "SPRING1")
    code = Code("SPRING1", shop.book.book_id, CodeState.AVAILABLE, 0, 0)
    for book_id, business_id in ((None, ""), (shop.book.book_id, "bakery")):
        assert await shop.reads.code("SPRING1", book_id, business_id) == (code, shop.book)
    for missing, book_id, business_id in (
        ("SPRING2", None, ""),
        ("SPRING1", shop.other.book_id, ""),
        ("SPRING1", NOBODY, ""),
        ("SPRING1", None, "butcher"),
    ):
        with pytest.raises(CodeNotFound):
            await shop.reads.code(missing, book_id, business_id)


async def test_a_mistyped_code_is_distinguished_from_an_unknown_one_where_the_book_is_named(
    shop: Shop,
) -> None:
    code_format = CodeFormat(check_character=True)
    book = await make_book(shop.books, "checked", code_format=code_format)
    (right,) = generate(code_format, 1)
    wrong = right[:-1] + ("B" if right[-1] != "B" else "C")
    with pytest.raises(CodeNotFound):
        await shop.reads.code(right, book.book_id, "")
    with pytest.raises(CodeChecksumInvalid):
        await shop.reads.code(wrong, book.book_id, "")
    with pytest.raises(CodeNotFound):
        await shop.reads.code(wrong, None, "")


async def test_codes_are_listed_whole_in_every_page_size_and_by_state(shop: Shop) -> None:
    codes = [f"C{number}" for number in range(23)]
    await shop.codes(shop.book, *codes)
    await shop.codes(shop.other, "ELSEWHERE")
    for code in codes[:5]:
        await shop.assign(code, "ann")
    await shop.disable("C7")

    async def listed(state: CodeState | None, size: int) -> list[str]:
        async def page(after: Position | None) -> tuple[Sequence[Code], Position | None]:
            book, found, position = await shop.reads.codes(
                shop.book.book_id, "bakery", state, size, after
            )
            assert book == shop.book
            assert state is None or {it.state for it in found} <= {state}
            return found, position

        return [it.code for it in await all_pages(page, size)]

    in_order = sorted(codes, key=lambda code: (bucket_of(code), code))
    for size in (1, 2, 22, 23, 24):
        assert await listed(None, size) == in_order
    assert await listed(CodeState.ASSIGNED, 2) == [it for it in in_order if it in codes[:5]]
    assert await listed(CodeState.DISABLED, 2) == ["C7"]
    assert await listed(CodeState.REDEEMED, 2) == []
    with pytest.raises(BookNotFound):
        await shop.reads.codes(shop.book.book_id, "butcher", None, 10, None)


async def test_a_code_that_changes_its_state_between_pages_is_listed_once(shop: Shop) -> None:
    codes = [f"C{number}" for number in range(20)]
    await shop.codes(shop.book, *codes)
    for code in codes[::2]:
        await shop.assign(code, "ann")

    async def page(after: Position | None) -> tuple[Sequence[Code], Position | None]:
        _, found, position = await shop.reads.codes(shop.book.book_id, "", None, 4, after)
        if after is None:
            for code in codes[::2]:
                await shop.revoke(code, "ann")
            for code in codes[1::2]:
                await shop.assign(code, "bob")
        return found, position

    assert sorted(it.code for it in await all_pages(page, 4)) == sorted(codes)


# --- assignments --------------------------------------------------------------------------------


async def test_a_users_codes_are_listed_newest_first_with_code_and_book(shop: Shop) -> None:
    await shop.codes(shop.book, "A1", "A2", "A3")
    await shop.codes(shop.other, "B1")
    for code in ("A1", "B1", "A3", "A2"):
        await shop.assign(code, "ann")
    await shop.assign("A1", "bob")
    await shop.redeem("A2", "carl")  # a bearer, to whom nothing was assigned
    await shop.revoke("A3", "ann")

    async def listed(
        user_id: str,
        book: Book | None = None,
        business_id: str = "",
        state: AssignmentState | None = None,
    ) -> list[str]:
        found = await all_pages(
            lambda after: shop.reads.user_coupons(
                user_id, book.book_id if book else None, business_id, state, 2, after
            ),
            2,
        )
        for assignment, code, owner in found:
            assert assignment.user_id == user_id
            assert code.code == assignment.code
            assert owner == (shop.other if code.code == "B1" else shop.book)
        return [code.code for _, code, _ in found]

    assert await listed("ann") == ["A2", "A3", "B1", "A1"]
    assert await listed("ann", state=AssignmentState.REVOKED) == ["A3"]
    assert await listed("ann", state=AssignmentState.ACTIVE) == ["A2", "B1", "A1"]
    assert await listed("ann", shop.book) == ["A2", "A3", "A1"]
    assert await listed("ann", business_id="butcher") == ["B1"]
    assert await listed("ann", shop.book, business_id="butcher") == []
    assert await listed("carl") == []
    with pytest.raises(InvalidArgument):
        await shop.reads.user_coupons("ann", None, "", None, 2, ("2026-01-01T00:00:00", "\0"))


# --- redemptions --------------------------------------------------------------------------------


async def test_a_redemption_is_found_with_its_rollback(shop: Shop) -> None:
    await shop.codes(shop.book, "A1")
    redemption = await shop.redeem("A1", "ann", "o1")
    found = redemption.event_id
    assert await shop.reads.redemption(found, "bakery") == (redemption, None)
    rollback = await shop.roll_back(redemption)
    assert await shop.reads.redemption(found, "") == (redemption, rollback)
    for missing, business_id in ((found, "butcher"), (rollback.event_id, ""), (NOBODY, "")):
        with pytest.raises(RedemptionNotFound):
            await shop.reads.redemption(missing, business_id)


async def test_redemptions_are_listed_by_each_filter_and_all_of_them_together(shop: Shop) -> None:
    await shop.codes(shop.book, "A1", "A2")
    await shop.codes(shop.other, "B1")
    await shop.assign("A1", "ann")
    made = [
        await shop.redeem(code, user_id, order_id)
        for code, user_id, order_id in (
            ("A1", "ann", "o1"),
            ("A2", "ann", "o1"),
            ("A1", "bob", "o2"),
            ("B1", "ann", "o1"),
            ("A1", "ann", "o3"),
        )
    ]
    rollback = await shop.roll_back(made[1])
    newest_first = made[::-1]

    async def listed(
        user_id: str = "",
        book: Book | None = None,
        code: str = "",
        order_id: str = "",
        business_id: str = "",
    ) -> list[Event]:
        wanted = AuditFilter(
            user_id=user_id,
            book_id=book.book_id if book else None,
            code=code,
            order_id=order_id,
            business_id=business_id,
            types=(EventType.REDEEMED,),
        )
        found = await all_pages(lambda after: shop.reads.redemptions(wanted, 2, after), 2)
        for redemption, undone in found:
            assert undone == (rollback if redemption == made[1] else None)
        return [redemption for redemption, _ in found]

    def those(*numbers: int) -> list[Event]:
        return [it for it in newest_first if made.index(it) in numbers]

    assert await listed(user_id="ann") == those(0, 1, 3, 4)
    assert await listed(code="A1") == those(0, 2, 4)
    assert await listed(order_id="o1") == those(0, 1, 3)
    assert await listed(book=shop.book) == those(0, 1, 2, 4)
    assert await listed(business_id="butcher") == those(3)
    assert await listed() == newest_first
    assert await listed("ann", shop.book, "A1", "o1", "bakery") == those(0)
    assert await listed("ann", business_id="bakery") == those(0, 1, 4)
    assert await listed(book=shop.book, business_id="butcher") == []
    assert await listed(user_id="nobody") == []
