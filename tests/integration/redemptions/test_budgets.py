"""Budgets: what the redemptions of a book may take off together, and what the ledger says of it."""

from __future__ import annotations

import psycopg
import pytest
from grpc import StatusCode
from support.calls import ALL_OR_NOTHING, batch, item, outcomes_of, reasons_of
from support.service import Api, ServerThread, books, euros, new_codes, refused

BUDGET = books.BookLimits(max_discount_minor=1_200)
HALF = books.Discount(percent_off=books.PercentOff(basis_points=5_000))


def given_minor(api: Api, book_id: str) -> int:
    return api.stats(book_id).discount_given.amount_minor


def test_a_book_takes_off_what_its_budget_allows_and_not_a_cent_more(api: Api) -> None:
    names = new_codes(3)
    made = api.book(codes=names, limits=BUDGET, discount=HALF)
    assert made.limits.max_discount_minor == 1_200
    api.redeem(names[0], "ann", order_amount=euros(2_000))
    with refused("BUDGET_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        api.redeem(names[1], "ann", order_amount=euros(402))
    assert it.metadata == {"limit_minor": "1200", "left_minor": "200", "currency_code": "EUR"}
    redeemed = api.redeem(names[1], "ann", order_amount=euros(400)).redemption
    assert redeemed.discount.amount_minor == 200
    assert given_minor(api, made.book_id) == 1_200
    api.rollback(redeemed.redemption_id)
    assert given_minor(api, made.book_id) == 1_000
    api.redeem(names[2], "ann", order_amount=euros(400))


def test_a_dry_run_tells_that_the_budget_is_too_small(api: Api) -> None:
    code = api.code(limits=books.BookLimits(max_discount_minor=10), discount=HALF)
    assert reasons_of(api.validate(code, "ann", order_amount=euros(22))) == ["BUDGET_EXCEEDED"]
    assert reasons_of(api.validate(code, "ann")) == ["ORDER_AMOUNT_REQUIRED"]
    assert api.validate(code, "ann", order_amount=euros(20)).valid


def test_a_budget_is_set_before_the_first_activation_and_changed_at_any_time(api: Api) -> None:
    names = new_codes(3)
    made = api.draft(discount=HALF)
    api.import_codes(made.book_id, names)
    api.update(made.book_id, limits=BUDGET)
    api.activate(made.book_id)
    api.redeem(names[0], "ann", order_amount=euros(2_000))
    api.update(made.book_id, limits=books.BookLimits(max_discount_minor=700))
    with refused("BUDGET_EXCEEDED") as it:
        api.redeem(names[1], "ann", order_amount=euros(2))
    assert it.metadata["left_minor"] == "0"
    api.update(made.book_id, limits=books.BookLimits(max_discount_minor=1_001))
    api.redeem(names[1], "ann", order_amount=euros(2))
    api.update(made.book_id, limits=books.BookLimits())
    api.redeem(names[2], "ann")
    with refused("INVALID_STATE_TRANSITION") as it:
        api.update(made.book_id, limits=BUDGET)
    assert it.metadata == {"state": "ACTIVE", "field": "limits.max_discount_minor"}


@pytest.mark.one_shard
def test_a_redemption_that_was_not_counted_is_rolled_back(api: Api, server: ServerThread) -> None:
    (code,) = new_codes(1)
    made = api.book(codes=[code], limits=BUDGET, discount=HALF)
    done = api.redeem(code, "ann", order_amount=euros(2_000)).redemption
    with psycopg.connect(server.database_url) as connection:  # as a version before budgets did
        connection.execute(
            "UPDATE coupon_book_totals SET redemptions = 0, discount_minor = 0 WHERE book_id = %s",
            [made.book_id],
        )
    api.rollback(done.redemption_id)
    api.redeem(code, "ann", order_amount=euros(2_400))
    with refused("CODE_ALREADY_REDEEMED"):
        api.redeem(code, "ann", order_amount=euros(2))


def test_a_benefit_has_no_budget(api: Api) -> None:
    with refused("INVALID_ARGUMENT") as it:
        api.draft(limits=BUDGET, discount=books.Discount(benefit=books.Benefit(description="gift")))
    assert it.fields == ["coupon_book.limits.max_discount_minor"]


def test_a_batch_that_is_all_or_nothing_takes_nothing_where_the_budget_is_too_small(
    api: Api,
) -> None:
    names = new_codes(3)
    made = api.book(codes=names, limits=BUDGET)
    items = [item(code, "ann", order_amount=euros(5_000)) for code in names]
    found = outcomes_of(batch(api, items, ALL_OR_NOTHING))
    assert found == ["BUDGET_EXCEEDED"] * 3
    assert given_minor(api, made.book_id) == 0


def test_a_lock_is_refused_when_nothing_is_left(api: Api) -> None:
    names = new_codes(3)
    limits = books.BookLimits(max_discount_minor=10)
    api.book(codes=names, limits=limits, discount=HALF, lock_policy=books.LOCK_POLICY_OPTIONAL)
    held = api.lock(names[0], "ann")
    api.redeem(names[1], "bob", order_amount=euros(20))
    with refused("BUDGET_EXCEEDED"):
        api.lock(names[2], "bob")
    with refused("BUDGET_EXCEEDED"):
        api.redeem(names[0], "ann", lock_token=held.lock_token, order_amount=euros(2))
