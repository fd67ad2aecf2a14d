"""A transaction that is rolled back leaves its connection as good as it was."""

from __future__ import annotations

from service import Api, books, refused, unique


def test_codes_are_redeemed_after_a_change_of_a_book_was_refused(api: Api) -> None:
    book = api.draft()
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=0))
    for _ in range(20):  # so that it meets every connection
        api.redeem(code, unique("user"))
        with refused("CONCURRENT_MODIFICATION"):
            api.update(book.book_id, etag="v99", name="Another name")
