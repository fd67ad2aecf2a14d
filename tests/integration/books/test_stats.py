"""GetCouponBookStats: exact after every kind of change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from support.service import (
    Api,
    ServerThread,
    books,
    codes,
    euros,
    new_codes,
    redemptions,
    unique,
)

STATES = ("available", "assigned", "redeemed", "disabled")


def counts(api: Api, book_id: str) -> dict[str, int]:
    """What is not zero in the stats, after a look at the codes themselves says the same."""
    stats = api.stats(book_id)
    found = {name: getattr(stats, f"{name}_count") for name in STATES}
    listed = api.codes.ListCodes(codes.ListCodesRequest(book_id=book_id, page_size=1_000)).codes
    by_state = Counter(codes.CouponCodeState.Name(code.state) for code in listed)
    for name in STATES:
        assert found[name] == by_state[f"COUPON_CODE_STATE_{name.upper()}"], name
    assert stats.code_count == len(listed) == sum(found.values())
    assert stats.redemption_count == sum(code.redemption_count for code in listed)
    assert stats.assignment_count == sum(code.assignment_count for code in listed)
    found |= {
        "assignments": stats.assignment_count,
        "redemptions": stats.redemption_count,
        "rollbacks": stats.rollback_count,
        "discount": stats.discount_given.amount_minor,
    }
    return {name: count for name, count in found.items() if count}


def test_a_new_book_has_counts_of_nothing(api: Api) -> None:
    book = api.draft()
    assert api.stats(book.book_id) == books.CouponBookStats(
        book_id=book.book_id, discount_given=euros(0)
    )


def test_stats_are_exact_after_every_kind_of_change(api: Api) -> None:
    names = new_codes(4)
    one, other, third, _ = names
    made = api.book(codes=names[:3])

    def after(change: Any, **expected: int) -> Any:
        assert counts(api, made.book_id) == expected
        return change

    order = {"order_amount": euros(999)}  # 10 % of it: 99
    after(None, available=3)
    after(api.import_codes(made.book_id, names), available=4)
    after(api.assign(one, "u"), available=3, assigned=1, assignments=1)
    first = after(
        api.redeem(one, "u", **order),
        available=3,
        redeemed=1,
        assignments=1,
        redemptions=1,
        discount=99,
    )
    second = after(
        api.redeem(other, "u", **order),
        available=2,
        redeemed=2,
        assignments=1,
        redemptions=2,
        discount=198,
    )
    used = {"assignments": 1, "redemptions": 2, "discount": 198}
    after(api.disable(other), available=2, redeemed=1, disabled=1, **used)
    after(api.disable(third), available=1, redeemed=1, disabled=2, **used)
    back = {"assignments": 1, "redemptions": 1, "rollbacks": 1, "discount": 99}
    after(
        api.rollback(second.redemption.redemption_id), available=1, redeemed=1, disabled=2, **back
    )
    after(api.enable(other), available=2, redeemed=1, disabled=1, **back)
    after(
        api.rollback(first.redemption.redemption_id),
        available=2,
        assigned=1,
        disabled=1,
        assignments=1,
        rollbacks=2,
    )
    after(api.revoke(one, "u"), available=3, disabled=1, rollbacks=2)
    after(api.enable(third), available=4, rollbacks=2)
    after(api.assign_random(made.book_id, "u"), available=3, assigned=1, assignments=1, rollbacks=2)
    api.pause(made.book_id)
    api.close_book(made.book_id)
    assert counts(api, made.book_id) == {
        "available": 3,
        "assigned": 1,
        "assignments": 1,
        "rollbacks": 2,
    }


def test_a_code_of_many_uses_is_counted_once_and_its_redemptions_all(api: Api) -> None:
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=2)
    made = api.book(codes=[code], limits=limits)
    api.assign(code, "a")
    api.assign(code, "b")
    assert counts(api, made.book_id) == {"assigned": 1, "assignments": 2}
    api.redeem(code, "a", order_amount=euros(100))
    assert counts(api, made.book_id) == {
        "assigned": 1,
        "assignments": 2,
        "redemptions": 1,
        "discount": 10,
    }
    api.redeem(code, "c", order_amount=euros(100))
    assert counts(api, made.book_id) == {
        "redeemed": 1,
        "assignments": 2,
        "redemptions": 2,
        "discount": 20,
    }


@pytest.mark.one_shard
def test_discounts_add_up_to_more_than_an_amount_can_be(api: Api, server: ServerThread) -> None:
    limits = books.BookLimits(max_redemptions_per_code=0)
    everything = books.Discount(percent_off=books.PercentOff(basis_points=10_000))
    (code,) = new_codes(1)
    book_id = api.book(codes=[code], limits=limits, discount=everything).book_id
    most = {"order_amount": euros(10**15)}
    first = api.redeem(code, "u", **most).redemption.redemption_id
    with given_before(server, book_id, 2**63 - 1 - 10**15):
        assert counts(api, book_id)["discount"] == 2**63 - 1
        api.redeem(code, "u", **most)
        assert counts(api, book_id)["discount"] == 2**63 - 1
        api.rollback(first)
        generate = codes.GenerateCodesRequest(
            book_id=book_id, count=5, request_id=unique("request")
        )
        assert list(api.codes.GenerateCodes(generate))
        assert api.import_codes(book_id, new_codes(1))[0].created_count == 1
        assert counts(api, book_id)["discount"] == 2**63 - 1
    assert counts(api, book_id)["discount"] == 10**15


@contextmanager
def given_before(server: ServerThread, book_id: str, amount_minor: int) -> Generator[None]:
    """As if the book had given so much more."""
    url = server.settings.database_url
    assert url is not None
    add = (
        "UPDATE coupon_book_counters SET discount_minor = discount_minor + %s"
        " WHERE book_id = %s AND redemptions > 0"
    )
    with psycopg.connect(url.get_secret_value(), autocommit=True) as connection:
        connection.execute(add, (amount_minor, book_id))
        yield
        connection.execute(add, (-amount_minor, book_id))


def test_refused_and_repeated_calls_count_nothing(api: Api) -> None:
    one, other = new_codes(2)
    made = api.book(codes=[one, other])
    request = api.redeem_request(one, "u", order_amount=euros(100))
    for _ in range(2):
        api.redemptions.RedeemCode(request)
    items = [redemptions.RedeemItem(code=code, user_id="u") for code in (one, other)]
    for mode in (redemptions.BATCH_MODE_ALL_OR_NOTHING, redemptions.BATCH_MODE_BEST_EFFORT):
        assert counts(api, made.book_id) == {
            "available": 1,
            "redeemed": 1,
            "redemptions": 1,
            "discount": 10,
        }
        batch = redemptions.BatchRedeemCodesRequest(
            items=items, mode=mode, request_id=unique("request")
        )
        api.redemptions.BatchRedeemCodes(batch)
    assert counts(api, made.book_id) == {"redeemed": 2, "redemptions": 2, "discount": 10}


def test_no_discount_is_given_by_a_benefit(api: Api) -> None:
    (code,) = new_codes(1)
    gift = books.Discount(benefit=books.Benefit(description="A gift"))
    made = api.book(codes=[code], discount=gift, currency_code="")
    api.redeem(code, "user", order_amount=euros(100))
    stats = api.stats(made.book_id)
    assert stats.redemption_count == 1
    assert not stats.HasField("discount_given")
