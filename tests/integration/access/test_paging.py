"""Pages: every list can be walked in steps of any size, and a token is good for its query only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from grpc import StatusCode
from support.service import (
    Api,
    assignments,
    audit,
    books,
    codes,
    from_now,
    new_codes,
    pages,
    redemptions,
    refused,
    unique,
)
from support.waiting import until

COUNT = 7


@dataclass(frozen=True)
class Listing:
    """A list of COUNT items: the RPC, a request for it, the field of the answer, other queries."""

    rpc: Callable[[Any], Any]
    request: Any
    items: str
    others: tuple[dict[str, Any], ...]

    def asked(self, **fields: Any) -> Any:
        """The request with other fields."""
        request = type(self.request)()
        request.CopyFrom(self.request)
        request.MergeFrom(type(request)(**fields))
        return request

    def answer(self, **fields: Any) -> tuple[list[Any], str]:
        """The items of a page and the token for the next one."""
        answer = self.rpc(self.asked(**fields))
        return list(getattr(answer, self.items)), answer.next_page_token

    def whole(self) -> list[Any]:
        """All items in one page."""
        items, token = self.answer(page_size=1_000)
        assert token == ""
        return items


@pytest.fixture(scope="module")
def listings(api: Api) -> dict[str, Listing]:
    """A list of each kind; the items of some of them have the same time."""
    business_id, user_id, holder = unique("business"), unique("user"), unique("user")
    names = new_codes(COUNT)
    limits = books.BookLimits(max_redemptions_per_code=0)
    book = api.book(codes=names, business_id=business_id, limits=limits)
    other = api.draft(business_id=business_id).book_id
    for _ in range(COUNT - 2):
        api.draft(business_id=business_id)
    locked = new_codes(5)
    lock_book = api.book(codes=locked, lock_policy=books.LOCK_POLICY_OPTIONAL)
    for code in locked:
        api.lock(code, holder)
    for code in names:
        api.assign(code, user_id, business_id=business_id)
    items = [redemptions.RedeemItem(code=code, user_id=user_id) for code in names]
    api.redemptions.BatchRedeemCodes(
        redemptions.BatchRedeemCodesRequest(
            items=items, request_id=unique("request"), business_id=business_id
        )
    )
    for code in locked[:1] * COUNT:
        with refused("CODE_LOCKED"):
            api.lock(code, user_id)
    refusals = redemptions.ListRefusalsRequest(user_id=user_id)
    until(lambda: len(api.redemptions.ListRefusals(refusals).refusals) == COUNT)
    redeemed = [audit.AUDIT_EVENT_TYPE_REDEEMED]
    return {
        "ListCouponBooks": Listing(
            api.books.ListCouponBooks,
            books.ListCouponBooksRequest(business_id=business_id),
            "coupon_books",
            ({"business_id": "x"}, {"state": books.COUPON_BOOK_STATE_DRAFT}),
        ),
        "ListCodes": Listing(
            api.codes.ListCodes,
            codes.ListCodesRequest(book_id=book.book_id),
            "codes",
            ({"book_id": other}, {"state": codes.COUPON_CODE_STATE_ASSIGNED}),
        ),
        "ListUserCoupons": Listing(
            api.assignments.ListUserCoupons,
            assignments.ListUserCouponsRequest(user_id=user_id),
            "coupons",
            ({"user_id": "x"}, {"book_id": book.book_id}, {"state": 1}),
        ),
        "ListAssignments": Listing(
            api.assignments.ListAssignments,
            assignments.ListAssignmentsRequest(book_id=book.book_id),
            "assignments",
            ({"book_id": other}, {"state": 1}, {"start_time": from_now(hours=-1)}),
        ),
        "ListRedemptions": Listing(
            api.redemptions.ListRedemptions,
            redemptions.ListRedemptionsRequest(user_id=user_id),
            "redemptions",
            ({"user_id": "x"}, {"book_id": other}, {"code": names[0]}, {"order_id": "o"}),
        ),
        "ListRedemptions of a business": Listing(
            api.redemptions.ListRedemptions,
            redemptions.ListRedemptionsRequest(business_id=business_id),
            "redemptions",
            ({"business_id": "x"}, {"start_time": from_now(hours=-1)}),
        ),
        "ListRefusals": Listing(
            api.redemptions.ListRefusals,
            refusals,
            "refusals",
            ({"user_id": "x"}, {"book_id": other}, {"code": names[0]}, {"order_id": "o"}),
        ),
        "ListRefusals of a book": Listing(
            api.redemptions.ListRefusals,
            redemptions.ListRefusalsRequest(book_id=lock_book.book_id),
            "refusals",
            ({"book_id": other}, {"business_id": "x"}),
        ),
        "ListAuditEvents": Listing(
            api.audit.ListAuditEvents,
            audit.ListAuditEventsRequest(book_id=book.book_id, types=redeemed),
            "events",
            ({"book_id": other}, {"types": redeemed}, {"code": names[0]}, {"user_id": "x"}),
        ),
        "ListLocks": Listing(
            api.redemptions.ListLocks,
            redemptions.ListLocksRequest(user_id=holder),
            "locks",
            ({"user_id": "x"}, {"book_id": lock_book.book_id}),
        ),
    }


LISTS = [
    "ListCouponBooks",
    "ListCodes",
    "ListUserCoupons",
    "ListAssignments",
    "ListRedemptions",
    "ListRedemptions of a business",
    "ListRefusals",
    "ListRefusals of a book",
    "ListAuditEvents",
    "ListLocks",
]


@pytest.fixture(params=LISTS)
def listing(request: pytest.FixtureRequest, listings: dict[str, Listing]) -> Listing:
    return listings[request.param]


@pytest.mark.parametrize("page_size", [1, 2, 3, COUNT - 1, COUNT, COUNT + 1])
def test_pages_of_any_size_make_up_the_whole_list(listing: Listing, page_size: int) -> None:
    whole = listing.whole()
    found = pages(listing.rpc, listing.asked(page_size=page_size), listing.items)
    assert [item for page in found for item in page] == whole
    assert len({str(item) for item in whole}) == len(whole) in (COUNT, 5)
    assert all(len(page) == page_size for page in found[:-1])
    assert len(found[-1]) <= page_size


def test_the_page_size_may_change_from_page_to_page(listing: Listing) -> None:
    whole = listing.whole()
    first, token = listing.answer(page_size=2)
    second, token = listing.answer(page_size=1, page_token=token)
    rest, token = listing.answer(page_token=token)
    assert [*first, *second, *rest] == whole
    assert token == ""


def test_a_page_can_be_asked_for_again(listing: Listing) -> None:
    _, token = listing.answer(page_size=2)
    assert listing.answer(page_size=2, page_token=token) == listing.answer(
        page_size=2, page_token=token
    )


def test_a_token_of_another_query_is_refused(
    listing: Listing, listings: dict[str, Listing]
) -> None:
    _, token = listing.answer(page_size=2)
    for fields in listing.others:
        with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
            listing.answer(page_token=token, **fields)
        assert it.fields == ["page_token"]
    for other in listings.values():
        if other is not listing:
            with refused("INVALID_ARGUMENT") as it:
                other.answer(page_token=token)
            assert it.fields == ["page_token"]


def test_a_token_that_the_service_did_not_make_is_refused(listing: Listing) -> None:
    _, token = listing.answer(page_size=2)
    middle = len(token) // 2
    altered = token[:middle] + ("A" if token[middle] != "A" else "B") + token[middle + 1 :]
    for bad in (altered, token[:-4], token + "AAAA", "x", "ü", "=", "\0", " ", token.swapcase()):
        with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
            listing.answer(page_token=bad)
        assert it.fields == ["page_token"], bad


def test_a_page_has_fifty_items_when_nothing_is_said(api: Api) -> None:
    book = api.book(codes=51)
    answer = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id))
    assert len(answer.codes) == 50
    request = codes.ListCodesRequest(book_id=book.book_id, page_token=answer.next_page_token)
    assert len(api.codes.ListCodes(request).codes) == 1


def test_a_page_has_a_thousand_items_at_most(api: Api) -> None:
    book = api.book(codes=1_001)
    request = codes.ListCodesRequest(book_id=book.book_id, page_size=1_000)
    assert [len(page) for page in pages(api.codes.ListCodes, request, "codes")] == [1_000, 1]


def test_what_is_added_meanwhile_neither_repeats_nor_hides_what_was_there(api: Api) -> None:
    business_id = unique("business")
    there = [api.draft(business_id=business_id).book_id for _ in range(4)][::-1]
    request = books.ListCouponBooksRequest(business_id=business_id, page_size=2)
    first = api.books.ListCouponBooks(request)
    api.draft(business_id=business_id)
    request.page_token = first.next_page_token
    second = api.books.ListCouponBooks(request)
    found = [book.book_id for book in [*first.coupon_books, *second.coupon_books]]
    assert found == there
    assert second.next_page_token == ""


def test_an_empty_list_is_one_empty_page(api: Api) -> None:
    for rpc, request, items in (
        (
            api.books.ListCouponBooks,
            books.ListCouponBooksRequest(business_id=unique("b")),
            "coupon_books",
        ),
        (api.codes.ListCodes, codes.ListCodesRequest(book_id=api.draft().book_id), "codes"),
        (
            api.assignments.ListUserCoupons,
            assignments.ListUserCouponsRequest(user_id=unique("u")),
            "coupons",
        ),
        (
            api.assignments.ListAssignments,
            assignments.ListAssignmentsRequest(book_id=api.draft().book_id),
            "assignments",
        ),
        (
            api.redemptions.ListRedemptions,
            redemptions.ListRedemptionsRequest(business_id=unique("b")),
            "redemptions",
        ),
        (
            api.redemptions.ListRedemptions,
            redemptions.ListRedemptionsRequest(user_id=unique("u")),
            "redemptions",
        ),
        (
            api.redemptions.ListRefusals,
            redemptions.ListRefusalsRequest(business_id=unique("b")),
            "refusals",
        ),
        (
            api.redemptions.ListLocks,
            redemptions.ListLocksRequest(user_id=unique("u")),
            "locks",
        ),
        (api.audit.ListAuditEvents, audit.ListAuditEventsRequest(user_id=unique("u")), "events"),
    ):
        assert pages(rpc, request, items) == [[]]
