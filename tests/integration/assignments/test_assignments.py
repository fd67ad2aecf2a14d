"""AssignmentService: codes are given to users, taken back, and shown to them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from grpc import StatusCode
from support.service import (
    Api,
    ServerThread,
    assignments,
    books,
    codes,
    from_now,
    new_codes,
    refused,
    struct,
    unique,
)

from coupon_service.v1.error_reason_pb2 import ErrorReason

ACTIVE = assignments.ASSIGNMENT_STATE_ACTIVE
REDEEMED = assignments.ASSIGNMENT_STATE_REDEEMED
REVOKED = assignments.ASSIGNMENT_STATE_REVOKED

MANY = books.BookLimits(max_redemptions_per_code=2)


def coupons(api: Api, user_id: str, **filters: Any) -> list[assignments.UserCoupon]:
    request = assignments.ListUserCouponsRequest(user_id=user_id, **filters)
    return list(api.assignments.ListUserCoupons(request).coupons)


def batch(
    api: Api, book_id: str, user_ids: list[str], **fields: Any
) -> list[assignments.BatchAssignResult]:
    fields = {"request_id": unique("request"), **fields}
    request = assignments.BatchAssignRandomCodesRequest(
        book_id=book_id, user_ids=user_ids, **fields
    )
    return list(api.assignments.BatchAssignRandomCodes(request).results)


# --- this code ----------------------------------------------------------------------------------


def test_an_assignment_is_shown_with_all_there_is_to_it(api: Api) -> None:
    prefix = uuid4().hex.upper()[:12]
    form = books.CodeFormat(length=4, alphabet="AB", prefix=prefix, separator="-")
    book = api.book(codes=[prefix + "ABBA"], code_format=form)
    user_id = unique("user")
    answer = api.assign(f"{prefix.lower()} abba", user_id, metadata=struct(campaign="mail"))
    given = answer.assignment
    assert not answer.replayed
    assert abs(given.assign_time.ToDatetime() - from_now().replace(tzinfo=None)) < timedelta(days=1)
    assert given == assignments.Assignment(
        code=prefix + "ABBA",
        display_code=prefix + "-ABBA",
        book_id=book.book_id,
        user_id=user_id,
        state=ACTIVE,
        assign_time=given.assign_time,
        metadata=struct(campaign="mail"),
    )
    (coupon,) = coupons(api, user_id)
    assert coupon.assignment == given
    assert api.get_code(given.code).state == codes.COUPON_CODE_STATE_ASSIGNED


def test_a_code_is_assigned_before_the_window_of_its_book_begins(api: Api) -> None:
    names = new_codes(2)
    book = api.book(codes=names, start_time=from_now(days=1))
    api.assign(names[0], "user")
    assert api.assign_random(book.book_id, "user").assignment.code == names[1]


def test_a_code_is_assigned_to_as_many_users_as_it_has_redemptions(api: Api) -> None:
    code = api.code(limits=MANY)
    for user_id in ("a", "b"):
        api.assign(code, user_id)
        with refused("CODE_ALREADY_ASSIGNED", StatusCode.ALREADY_EXISTS):
            api.assign(code, user_id)
    with refused("CODE_ALREADY_ASSIGNED", StatusCode.ALREADY_EXISTS):
        api.assign(code, "c")
    assert api.get_code(code).assignment_count == 2
    unlimited = api.code(limits=books.BookLimits(max_redemptions_per_code=0))
    for number in range(5):
        api.assign(unlimited, f"user-{number}")


@pytest.mark.parametrize(
    ("limit", "reason", "metadata"),
    [(1, "CODE_ALREADY_REDEEMED", {}), (2, "CODE_LIMIT_EXCEEDED", {"limit": "2"})],
)
def test_a_code_that_is_used_up_is_assigned_to_nobody(
    api: Api, limit: int, reason: str, metadata: dict[str, str]
) -> None:
    code = api.code(limits=books.BookLimits(max_redemptions_per_code=limit))
    for number in range(limit):
        api.redeem(code, f"user-{number}")
    with refused(reason, StatusCode.FAILED_PRECONDITION) as it:
        api.assign(code, "other")
    assert it.metadata == metadata


def test_only_a_code_that_is_there_can_be_assigned(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], code_format=books.CodeFormat(check_character=True))
    other = api.book()
    for wrong, book_id in ((code + "X", ""), (code, other.book_id), (code, str(uuid4()))):
        with refused("CODE_NOT_FOUND", StatusCode.NOT_FOUND):
            api.assign(wrong, "user", book_id=book_id)
    (sample,) = api.codes.PreviewCodes(
        codes.PreviewCodesRequest(count=1, book_id=book.book_id, sample_count=1)
    ).sample_codes
    mistyped = sample[:-1] + ("2" if sample[-1] != "2" else "3")
    with refused("CODE_CHECKSUM_INVALID", StatusCode.INVALID_ARGUMENT):
        api.assign(mistyped, "user", book_id=book.book_id)
    api.assign(code, "user", book_id=book.book_id)


def test_a_book_that_requires_it_lets_only_those_redeem_who_have_the_code(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code], assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED, limits=MANY)
    with refused("CODE_NOT_ASSIGNED_TO_USER", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, "user")
    api.assign(code, "user")
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, "other")
    api.redeem(code, "user")
    api.revoke(code, "user")
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, "user")
    assert api.stats(book.book_id).redemption_count == 1


# --- limits of a user ---------------------------------------------------------------------------


def test_a_user_has_as_many_codes_at_a_time_as_the_book_allows(api: Api) -> None:
    names, user_id = new_codes(4), unique("user")
    book = api.book(codes=names, limits=books.BookLimits(max_assignments_per_user=2))
    api.assign(names[0], user_id)
    second = api.assign_random(book.book_id, user_id).assignment.code
    left = [code for code in names[1:] if code != second]
    for call in (
        lambda: api.assign(left[0], user_id),
        lambda: api.assign_random(book.book_id, user_id),
    ):
        with refused("USER_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
            call()
        assert it.metadata == {"limit_name": "max_assignments_per_user", "limit": "2"}
    api.redeem(second, user_id)
    with refused("USER_LIMIT_EXCEEDED"):  # redeemed ones included
        api.assign(left[0], user_id)
    api.revoke(names[0], user_id)
    api.assign(left[0], user_id)  # revoked ones not
    api.assign(left[1], "another user")


def test_a_lower_limit_holds_for_the_next_assignment(api: Api) -> None:
    names, user_id = new_codes(4), unique("user")
    book = api.book(codes=names, limits=books.BookLimits(max_assignments_per_user=3))
    for code in names[:3]:
        api.assign(code, user_id)
    api.update(book.book_id, limits=books.BookLimits(max_assignments_per_user=2))
    api.revoke(names[0], user_id)
    with refused("USER_LIMIT_EXCEEDED"):
        api.assign(names[3], user_id)
    api.revoke(names[1], user_id)
    api.assign(names[3], user_id)


# --- a random code ------------------------------------------------------------------------------


def test_random_codes_are_given_until_none_is_left(api: Api) -> None:
    names = new_codes(6)
    book = api.book(codes=names)
    api.assign(names[0], "somebody")
    api.redeem(names[1], "somebody")
    api.disable(names[2])
    given = [api.assign_random(book.book_id, f"user-{n}").assignment for n in range(3)]
    assert sorted(it.code for it in given) == names[3:]
    assert all(it.state == ACTIVE for it in given)
    with refused("NO_CODES_AVAILABLE", StatusCode.FAILED_PRECONDITION) as it:
        api.assign_random(book.book_id, "one more")
    assert it.metadata == {}
    api.revoke(names[0], "somebody")
    assert api.assign_random(book.book_id, "one more").assignment.code == names[0]


def test_random_codes_come_in_no_order(api: Api) -> None:
    names = new_codes(60)
    book = api.book(codes=names)
    given = [api.assign_random(book.book_id, f"user-{n}").assignment.code for n in range(30)]
    assert given != sorted(given)
    listed = api.codes.ListCodes(codes.ListCodesRequest(book_id=book.book_id, page_size=60)).codes
    order = [code.code for code in listed]
    assert [order.index(code) for code in given] != sorted(order.index(code) for code in given)


def test_a_code_that_others_have_too_is_given_at_random_to_nobody_else(api: Api) -> None:
    book = api.book(codes=1, limits=MANY)
    api.assign_random(book.book_id, "a")
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(book.book_id, "b")


def test_nothing_is_written_about_a_book_that_is_not_there(api: Api, server: ServerThread) -> None:
    user_id = unique("user")
    with refused("BOOK_NOT_FOUND", StatusCode.NOT_FOUND):
        api.assign_random(str(uuid4()), user_id)
    with psycopg.connect(server.database_url) as connection:
        count = "SELECT count(*) FROM coupon_user_counters WHERE user_id = %s"
        assert connection.execute(count, [user_id]).fetchone() == (0,)


def test_a_random_code_needs_a_book_in_use(api: Api) -> None:
    with refused("BOOK_NOT_ACTIVE", StatusCode.FAILED_PRECONDITION) as it:
        api.assign_random(api.draft().book_id, "user")
    assert it.metadata == {"state": "DRAFT"}
    with refused("NO_CODES_AVAILABLE"):
        api.assign_random(api.book().book_id, "user")


# --- many users ---------------------------------------------------------------------------------


def test_a_thousand_users_get_a_code_each_in_the_order_of_the_request(api: Api) -> None:
    book = api.book(codes=1_000)
    user_ids = [f"user-{number}" for number in range(1_000)]
    results = batch(api, book.book_id, user_ids, metadata=struct(a=1))
    assert [it.user_id for it in results] == user_ids
    assert [it.assignment.user_id for it in results] == user_ids
    assert len({it.assignment.code for it in results}) == 1_000
    assert not any(it.replayed for it in results)
    assert not any(it.assignment.HasField("metadata") for it in results)  # the caller has sent them
    (kept,) = api.assignments.ListUserCoupons(
        assignments.ListUserCouponsRequest(user_id="user-0", book_id=book.book_id)
    ).coupons
    assert kept.assignment.metadata == struct(a=1)
    assert api.stats(book.book_id).assignment_count == 1_000
    assert len(api.events(book_id=book.book_id)) == 1_003


def test_one_users_error_does_not_keep_the_others_from_their_codes(api: Api) -> None:
    book = api.book(codes=3, limits=books.BookLimits(max_assignments_per_user=1))
    api.assign_random(book.book_id, "has one")
    results = batch(api, book.book_id, ["a", "has one", "b", "too late"])
    assert [it.WhichOneof("result") for it in results] == ["assignment", "error"] * 2
    errors = [results[1].error, results[3].error]
    assert [ErrorReason.Name(error.reason) for error in errors] == [
        "ERROR_REASON_USER_LIMIT_EXCEEDED",
        "ERROR_REASON_NO_CODES_AVAILABLE",
    ]
    assert dict(errors[0].metadata) == {"limit_name": "max_assignments_per_user", "limit": "1"}
    assert api.stats(book.book_id).assignment_count == 3


def test_a_batch_is_repeated_user_by_user(api: Api) -> None:
    book, request_id = api.book(codes=3), unique("request")
    first = batch(api, book.book_id, ["a", "b"], request_id=request_id)
    second = batch(api, book.book_id, ["b", "c", "a"], request_id=request_id)
    assert [it.replayed for it in second] == [True, False, True]
    assert [second[2].assignment, second[0].assignment] == [it.assignment for it in first]
    alone = api.assign_random(book.book_id, "c", request_id=request_id)
    assert (alone.replayed, alone.assignment) == (True, second[1].assignment)
    third = batch(api, book.book_id, ["a", "d"], request_id=request_id, metadata=struct(a=1))
    reasons = [ErrorReason.Name(it.error.reason) for it in third]
    assert reasons == ["ERROR_REASON_REQUEST_ID_REUSED", "ERROR_REASON_NO_CODES_AVAILABLE"]
    assert api.stats(book.book_id).assigned_count == 3


def test_every_user_of_a_batch_hears_that_the_book_is_not_there(api: Api) -> None:
    results = batch(api, str(uuid4()), ["a", "b"])
    assert [ErrorReason.Name(it.error.reason) for it in results] == [
        "ERROR_REASON_BOOK_NOT_FOUND"
    ] * 2


# --- revoke -------------------------------------------------------------------------------------


def test_a_code_whose_assignment_is_revoked_is_free_for_the_next(api: Api) -> None:
    code = api.code()
    given = api.assign(code, "a", metadata=struct(why="x")).assignment
    answer = api.revoke(f" {code.lower()}", "a")
    assert not answer.replayed
    given.state = REVOKED
    assert answer.assignment == given
    found = api.get_code(code)
    assert (found.state, found.assignment_count) == (codes.COUPON_CODE_STATE_AVAILABLE, 0)
    api.assign(code, "b")
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_ASSIGNED


def test_a_code_stays_assigned_while_somebody_has_it(api: Api) -> None:
    code = api.code(limits=MANY)
    api.assign(code, "a")
    api.assign(code, "b")
    api.revoke(code, "a")
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_ASSIGNED
    api.revoke(code, "b")
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_AVAILABLE


def test_a_code_can_be_given_to_the_same_user_again(api: Api) -> None:
    code, user_id = api.code(), unique("user")
    first = api.assign(code, user_id, metadata=struct(time=1)).assignment
    api.revoke(code, user_id)
    second = api.assign(code, user_id, metadata=struct(time=2)).assignment
    assert second.state == ACTIVE
    assert second.metadata == struct(time=2)
    assert second.assign_time.ToDatetime() > first.assign_time.ToDatetime()
    (coupon,) = coupons(api, user_id)
    assert coupon.assignment == second
    api.revoke(code, user_id)
    assert api.event_names(code=code) == ["ASSIGNED", "REVOKED", "ASSIGNED", "REVOKED"]


def test_what_a_user_redeemed_counts_when_the_code_is_given_again(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=0, max_redemptions_per_user_per_code=2)
    code = api.code(limits=limits)
    api.assign(code, "user")
    api.redeem(code, "user")
    assert api.revoke(code, "user").assignment.redemption_count == 1
    assert api.assign(code, "user").assignment.redemption_count == 1
    api.redeem(code, "user")
    with refused("USER_LIMIT_EXCEEDED") as it:
        api.redeem(code, "user")
    assert it.metadata == {"limit_name": "max_redemptions_per_user_per_code", "limit": "2"}


def test_only_an_active_assignment_can_be_revoked(api: Api) -> None:
    code = api.code()
    for wrong, reason in ((code, "ASSIGNMENT_NOT_FOUND"), (code + "X", "CODE_NOT_FOUND")):
        with refused(reason, StatusCode.NOT_FOUND):
            api.revoke(wrong, "user")
    api.assign(code, "user")
    with refused("ASSIGNMENT_NOT_FOUND", StatusCode.NOT_FOUND):
        api.revoke(code, "other")
    redemption_id = api.redeem(code, "user").redemption.redemption_id
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
        api.revoke(code, "user")
    assert it.metadata == {"state": "REDEEMED"}
    api.rollback(redemption_id)
    api.revoke(code, "user")
    with refused("INVALID_STATE_TRANSITION") as it:
        api.revoke(code, "user")
    assert it.metadata == {"state": "REVOKED"}


def test_a_bearer_who_only_redeemed_has_no_assignment(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=5, max_redemptions_per_user_per_code=2)
    code, user_id = api.code(limits=limits), unique("user")
    api.redeem(code, user_id)
    assert coupons(api, user_id) == []
    with refused("ASSIGNMENT_NOT_FOUND"):
        api.revoke(code, user_id)
    assert api.assign(code, user_id).assignment.redemption_count == 1


def test_a_random_code_may_be_one_that_was_revoked_from_the_user(api: Api) -> None:
    (code,) = new_codes(1)
    book = api.book(codes=[code])
    api.assign(code, "user")
    api.revoke(code, "user")
    again = api.assign_random(book.book_id, "user").assignment
    assert (again.code, again.state) == (code, assignments.ASSIGNMENT_STATE_ACTIVE)
    assert api.stats(book.book_id).assignment_count == 1
