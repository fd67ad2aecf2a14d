"""ValidateCode: every reason why not, what would be taken off, and nothing is changed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.calls import pause, reasons_of
from support.service import (
    Api,
    books,
    codes,
    euros,
    from_now,
    money,
    new_codes,
    redemptions,
    refused,
    unique,
)

OPTIONAL = books.LOCK_POLICY_OPTIONAL
DOLLARS = money.Money(amount_minor=100, currency_code="USD")
NOT_OURS = "bm90IG9uZSBvZiBvdXJz"
"""A lock token that this service never made."""


def test_a_code_that_can_be_redeemed_is_valid(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=5, max_redemptions_per_user_per_code=3)
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=limits)
    api.redeem(code, "ann")
    answer = api.validate(code, "ann", order_id="order 1", order_amount=euros(2_999))
    assert answer.valid
    assert not answer.problems
    assert answer.book_id == book.book_id
    assert answer.discount == euros(299)
    assert answer.counts == redemptions.RedemptionCounts(
        code_redemption_count=1, code_max_redemptions=5, user_code_redemption_count=1
    )


def test_validating_changes_nothing(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], lock_policy=OPTIONAL)
    before = api.stats(book.book_id), api.get_code(code), api.events(book_id=book.book_id)
    for user in ("ann", "bob", "ann"):
        assert api.validate(code, user, order_id="order 1").valid
    after = api.stats(book.book_id), api.get_code(code), api.events(book_id=book.book_id)
    assert before == after


def test_a_code_that_does_not_exist_is_a_reason_and_not_an_error(api: Api) -> None:
    (unknown,) = new_codes(1)
    answer = api.validate(unknown, "ann")
    assert reasons_of(answer) == ["CODE_NOT_FOUND"]
    assert (answer.valid, answer.book_id) == (False, "")
    assert not answer.HasField("counts")
    assert not answer.HasField("discount")


def test_a_code_of_another_book_is_not_found_in_the_one_that_is_named(api: Api) -> None:
    code, other = api.code(), api.book()
    assert reasons_of(api.validate(code, "ann", book_id=other.book_id)) == ["CODE_NOT_FOUND"]


def test_a_mistyped_code_is_distinguished_from_an_unknown_one(api: Api) -> None:
    book = api.book(code_format=books.CodeFormat(check_character=True))
    request = codes.PreviewCodesRequest(book_id=book.book_id, count=1, sample_count=1)
    (sample,) = api.codes.PreviewCodes(request).sample_codes
    mistyped = ("3" if sample[0] == "2" else "2") + sample[1:]
    of_the_book = {"book_id": book.book_id}
    assert reasons_of(api.validate(mistyped, "ann", **of_the_book)) == ["CODE_CHECKSUM_INVALID"]
    assert reasons_of(api.validate(sample, "ann", **of_the_book)) == ["CODE_NOT_FOUND"]
    assert reasons_of(api.validate(mistyped, "ann")) == ["CODE_NOT_FOUND"]


# --- every reason at once, the first one as RedeemCode answers ----------------------------------


@dataclass
class Attempt:
    """A redemption that is tried, and every reason against it."""

    code: str
    reasons: list[str]
    user_id: str = "ann"
    fields: dict[str, Any] = field(default_factory=dict[str, Any])


def nearly_everything(api: Api) -> Attempt:
    (code,) = new_codes(1)
    limits = books.BookLimits(
        max_redemptions=1, max_redemptions_per_user=1, max_redemptions_per_user_per_code=1
    )
    book = api.book(codes=[code], limits=limits, min_order_amount_minor=5_000)
    api.assign(code, "ann")
    api.redeem(code, "ann", order_id="order 1", order_amount=euros(5_000))
    api.disable(code)
    pause(api, book.book_id)
    return Attempt(
        code,
        [
            "BOOK_NOT_ACTIVE",
            "CODE_DISABLED",
            "ORDER_ALREADY_REDEEMED",
            "CODE_ALREADY_REDEEMED",
            "USER_LIMIT_EXCEEDED",
            "USER_LIMIT_EXCEEDED",
            "BOOK_LIMIT_EXCEEDED",
            "CURRENCY_MISMATCH",
            "ORDER_BELOW_MINIMUM",
        ],
        fields={"order_id": "order 1", "order_amount": DOLLARS},
    )


def outside_of_the_window(api: Api) -> Attempt:
    code = api.code(end_time=from_now(days=-1), assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED)
    return Attempt(code, ["BOOK_EXPIRED", "CODE_NOT_ASSIGNED_TO_USER"])


def before_the_window(api: Api) -> Attempt:
    code = api.code(start_time=from_now(days=1), min_order_amount_minor=1)
    return Attempt(code, ["BOOK_NOT_STARTED", "ORDER_BELOW_MINIMUM"])


def without_the_lock_that_is_required(api: Api) -> Attempt:
    code = api.code(lock_policy=books.LOCK_POLICY_REQUIRED)
    return Attempt(code, ["LOCK_REQUIRED"])


def without_the_lock_that_another_has(api: Api) -> Attempt:
    code = api.code(lock_policy=books.LOCK_POLICY_REQUIRED)
    api.lock(code, unique("holder"))
    return Attempt(code, ["LOCK_REQUIRED", "CODE_LOCKED"])


def past_the_lock_of_another(api: Api) -> Attempt:
    code = api.code(lock_policy=OPTIONAL, min_order_amount_minor=1)
    api.lock(code, unique("holder"))
    return Attempt(code, ["ORDER_BELOW_MINIMUM", "CODE_LOCKED"])


def with_a_token_that_was_never_made(api: Api) -> Attempt:
    code = api.code(lock_policy=OPTIONAL)
    return Attempt(code, ["LOCK_TOKEN_MISMATCH"], fields={"lock_token": NOT_OURS})


def with_such_a_token_where_a_lock_is_required(api: Api) -> Attempt:
    code = api.code(lock_policy=books.LOCK_POLICY_REQUIRED)
    return Attempt(code, ["LOCK_TOKEN_MISMATCH"], fields={"lock_token": NOT_OURS})


def with_such_a_token_where_nothing_is_locked(api: Api) -> Attempt:
    code = api.code(lock_policy=books.LOCK_POLICY_OFF)
    return Attempt(code, ["LOCK_TOKEN_MISMATCH"], fields={"lock_token": NOT_OURS})


def with_such_a_token_and_other_reasons(api: Api) -> Attempt:
    code = api.code(lock_policy=OPTIONAL)
    api.disable(code)
    reasons = ["CODE_DISABLED", "LOCK_TOKEN_MISMATCH"]
    return Attempt(code, reasons, fields={"lock_token": NOT_OURS})


def with_such_a_token_for_an_unknown_code(api: Api) -> Attempt:
    (unknown,) = new_codes(1)
    return Attempt(unknown, ["CODE_NOT_FOUND"], fields={"lock_token": NOT_OURS})


def with_the_token_of_another_user(api: Api) -> Attempt:
    code = api.code(lock_policy=OPTIONAL)
    token = api.lock(code, unique("holder")).lock_token
    return Attempt(code, ["LOCK_TOKEN_MISMATCH", "CODE_LOCKED"], fields={"lock_token": token})


def with_the_token_of_another_code(api: Api) -> Attempt:
    first, second = new_codes(2)
    api.book(codes=[first, second], lock_policy=OPTIONAL)
    user = unique("user")
    token = api.lock(first, user).lock_token
    return Attempt(second, ["LOCK_TOKEN_MISMATCH"], user, {"lock_token": token})


def with_a_lock_that_was_released(api: Api) -> Attempt:
    code, user = api.code(lock_policy=OPTIONAL), unique("user")
    token = api.lock(code, user).lock_token
    api.unlock(token)
    return Attempt(code, ["LOCK_EXPIRED"], user, {"lock_token": token})


def with_a_lock_that_was_used(api: Api) -> Attempt:
    limits = books.BookLimits(max_redemptions_per_code=2)
    code, user = api.code(lock_policy=OPTIONAL, limits=limits), unique("user")
    token = api.lock(code, user).lock_token
    api.redeem(code, user, lock_token=token)
    return Attempt(code, ["LOCK_EXPIRED"], user, {"lock_token": token})


@pytest.mark.parametrize(
    "prepare",
    [
        nearly_everything,
        outside_of_the_window,
        before_the_window,
        without_the_lock_that_is_required,
        without_the_lock_that_another_has,
        past_the_lock_of_another,
        with_a_token_that_was_never_made,
        with_such_a_token_where_a_lock_is_required,
        with_such_a_token_where_nothing_is_locked,
        with_such_a_token_and_other_reasons,
        with_such_a_token_for_an_unknown_code,
        with_the_token_of_another_user,
        with_the_token_of_another_code,
        with_a_lock_that_was_released,
        with_a_lock_that_was_used,
    ],
    ids=lambda prepare: prepare.__name__,
)
def test_every_reason_is_reported_and_the_first_is_what_redeem_answers(
    api: Api, prepare: Callable[[Api], Attempt]
) -> None:
    attempt = prepare(api)
    answer = api.validate(attempt.code, attempt.user_id, **attempt.fields)
    assert reasons_of(answer) == attempt.reasons
    assert not answer.valid
    with refused(attempt.reasons[0]) as it:
        api.redeem(attempt.code, attempt.user_id, **attempt.fields)
    assert it.metadata.keys() == answer.problems[0].metadata.keys()


# --- the rest of the answer ---------------------------------------------------------------------


def test_the_discount_and_the_counts_are_answered_also_when_there_are_problems(api: Api) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=2))
    api.redeem(code, "ann")
    api.disable(code)
    answer = api.validate(code, "ann", order_amount=euros(1_000))
    assert not answer.valid
    assert answer.discount == euros(100)
    assert (answer.counts.code_redemption_count, answer.counts.used_up) == (1, False)


@pytest.mark.parametrize(
    "discount",
    [
        books.Discount(percent_off=books.PercentOff(basis_points=1_000)),
        books.Discount(amount_off=books.AmountOff(amount_minor=700)),
    ],
    ids=["percent off", "amount off"],
)
def test_an_amount_in_another_currency_is_not_taken_for_one_of_the_book(
    api: Api, discount: books.Discount
) -> None:
    code = api.code(discount=discount)
    answer = api.validate(code, "ann", order_amount=DOLLARS)
    assert reasons_of(answer) == ["CURRENCY_MISMATCH"]
    assert answer.discount in (money.Money(), euros(700))


def test_a_holder_is_told_that_its_lock_is_good(api: Api) -> None:
    code, holder = api.code(lock_policy=books.LOCK_POLICY_REQUIRED), unique("holder")
    token = api.lock(code, holder).lock_token
    assert api.validate(code, holder, lock_token=token).valid
    api.redeem(code, holder, lock_token=token)


def test_a_holder_need_not_show_its_token_where_none_is_required(api: Api) -> None:
    code, holder = api.code(lock_policy=OPTIONAL), unique("holder")
    api.lock(code, holder)
    assert api.validate(code, holder).valid


def test_a_code_that_is_locked_for_others_shows_for_how_long(api: Api) -> None:
    code = api.code(lock_policy=OPTIONAL)
    api.lock(code, unique("holder"), ttl_s=30)
    (problem,) = api.validate(code, "ann").problems
    # As long as the token, and until nobody who was admitted in time can be still at it.
    assert 25_000 < int(problem.metadata["retry_after_ms"]) < 40_000
