"""ListRedemptions: by user, book, code and order, newest first, in pages."""

from __future__ import annotations

from typing import Any

import pytest
from grpc import StatusCode
from support.service import Api, books, new_codes, pages, redemptions, refused, unique

ANY_NUMBER = books.BookLimits(max_redemptions_per_code=0)


def listed(api: Api, page_size: int, **filters: Any) -> list[list[str]]:
    """The ids on each page."""
    request = redemptions.ListRedemptionsRequest(page_size=page_size, **filters)
    found = pages(api.redemptions.ListRedemptions, request, "redemptions")
    return [[it.redemption_id for it in page] for page in found]


def test_redemptions_are_listed_by_user_book_code_and_order_newest_first(api: Api) -> None:
    ann, bob, order = unique("ann"), unique("bob"), unique("order")
    (mine, shared), (other,) = new_codes(2), new_codes(1)
    book = api.book(codes=[mine, shared], limits=ANY_NUMBER)
    api.book(codes=[other], limits=ANY_NUMBER)
    made = [
        api.redeem(code, user, order_id=order_id).redemption.redemption_id
        for code, user, order_id in [
            (mine, ann, order),
            (shared, ann, unique("order")),
            (shared, bob, ""),
            (other, ann, order),
            (other, bob, unique("order")),
        ]
    ]
    expected: list[tuple[dict[str, str], list[int]]] = [
        ({"user_id": ann}, [3, 1, 0]),
        ({"book_id": book.book_id}, [2, 1, 0]),
        ({"code": shared.lower()}, [2, 1]),
        ({"order_id": order}, [3, 0]),
        ({"user_id": ann, "book_id": book.book_id}, [1, 0]),
        ({"user_id": ann, "code": shared}, [1]),
        ({"user_id": ann, "order_id": order}, [3, 0]),
        ({"book_id": book.book_id, "order_id": order}, [0]),
        ({"code": other, "order_id": order}, [3]),
        ({"book_id": book.book_id, "code": other}, []),
        ({"user_id": ann, "book_id": book.book_id, "code": mine, "order_id": order}, [0]),
        ({"user_id": unique("nobody")}, []),
    ]
    for filters, wanted in expected:
        assert listed(api, 1_000, **filters) == [[made[n] for n in wanted]], filters


@pytest.mark.one_shard
def test_redemptions_are_listed_by_business_and_time(api: Api) -> None:
    mine, others = unique("business"), unique("business")
    names = new_codes(3)
    of = dict(zip(names, (mine, others, mine), strict=True))
    for name, business_id in of.items():
        api.book(codes=[name], limits=ANY_NUMBER, business_id=business_id)
    made = [api.redeem(it, "ann", business_id=of[it]).redemption for it in (*names, *names)]
    ids = [it.redemption_id for it in made]
    wanted: dict[str, Any] = {"business_id": mine}
    assert listed(api, 1_000, **wanted) == [[ids[n] for n in (5, 3, 2, 0)]]
    assert listed(api, 3, **wanted) == [[ids[n] for n in (5, 3, 2)], [ids[0]]]
    wanted |= {"start_time": made[2].redeem_time, "end_time": made[5].redeem_time}
    assert listed(api, 1_000, **wanted) == [[ids[n] for n in (3, 2)]]
    del wanted["business_id"]
    assert listed(api, 1_000, **wanted) == [[ids[n] for n in (4, 3, 2)]]
    assert listed(api, 1_000, **wanted, user_id="ann", code=names[1]) == [[ids[4]]]
    assert listed(api, 1_000, business_id=unique("business")) == [[]]


def test_redemptions_come_in_pages(api: Api) -> None:
    code = api.code(limits=ANY_NUMBER)
    user = unique("user")
    made = [api.redeem(code, user).redemption.redemption_id for _ in range(5)][::-1]
    several: list[dict[str, Any]] = [{"user_id": user}, {"code": code}]
    for filters in (*several, {"user_id": user, "code": code}):
        assert listed(api, 2, **filters) == [made[:2], made[2:4], made[4:]]
    assert listed(api, 5, code=code) == [made]


def test_a_list_shows_what_was_rolled_back(api: Api) -> None:
    code = api.code(limits=ANY_NUMBER)
    undone, kept = (api.redeem(code, "ann").redemption.redemption_id for _ in range(2))
    rolled_back = api.rollback(undone).redemption
    request = redemptions.ListRedemptionsRequest(code=code)
    first, second = api.redemptions.ListRedemptions(request).redemptions
    assert (first.redemption_id, first.state) == (kept, redemptions.REDEMPTION_STATE_SUCCEEDED)
    assert second == rolled_back


def test_a_list_of_everybodys_redemptions_is_refused(api: Api) -> None:
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        api.redemptions.ListRedemptions(redemptions.ListRedemptionsRequest())
    assert it.fields == ["user_id"]
