"""ListUserCoupons: what a user has been given, and what can be done with it."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from support.service import Api, assignments, books, codes, from_now, new_codes, refused, unique

ACTIVE = assignments.ASSIGNMENT_STATE_ACTIVE
REDEEMED = assignments.ASSIGNMENT_STATE_REDEEMED
REVOKED = assignments.ASSIGNMENT_STATE_REVOKED


def coupons(api: Api, user_id: str, **filters: Any) -> list[assignments.UserCoupon]:
    request = assignments.ListUserCouponsRequest(user_id=user_id, **filters)
    return list(api.assignments.ListUserCoupons(request).coupons)


def shown(api: Api, user_id: str, **filters: Any) -> dict[str, str]:
    """What a user can do with each of the codes."""
    return {
        it.assignment.code: codes.CouponCodeState.Name(it.effective_state).removeprefix(
            "COUPON_CODE_STATE_"
        )
        for it in coupons(api, user_id, **filters)
    }


def test_a_user_sees_what_can_be_done_with_each_code(api: Api, tomorrow: Api) -> None:
    user_id = unique("user")
    names = new_codes(5)
    free, locked, used, off, taken = names
    api.book(codes=names, lock_policy=books.LOCK_POLICY_OPTIONAL, end_time=from_now(hours=1))
    for code in names:
        api.assign(code, user_id)
    api.lock(locked, user_id)
    api.redeem(used, user_id)
    api.disable(off)
    api.redeem(taken, "a bearer")
    now = {
        free: "ASSIGNED",
        locked: "LOCKED",
        used: "REDEEMED",
        off: "DISABLED",
        taken: "REDEEMED",
    }
    assert shown(api, user_id) == now
    assert shown(tomorrow, user_id) == {**now, free: "EXPIRED", locked: "EXPIRED"}


def test_a_code_is_shown_as_redeemed_to_those_who_have_used_their_part(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=3, max_redemptions_per_user_per_code=1)
    code, user_id, other = api.code(limits=limits), unique("user"), unique("user")
    for it in (user_id, other):
        api.assign(code, it)
    redemption_id = api.redeem(code, user_id).redemption.redemption_id
    assert shown(api, user_id) == {code: "REDEEMED"}
    (mine,), (theirs,) = coupons(api, user_id), coupons(api, other)
    assert (mine.assignment.state, mine.assignment.redemption_count) == (REDEEMED, 1)
    assert (theirs.assignment.state, theirs.assignment.redemption_count) == (ACTIVE, 0)
    assert shown(api, other) == {code: "ASSIGNED"}
    api.rollback(redemption_id)
    (mine,) = coupons(api, user_id)
    assert (mine.assignment.state, mine.assignment.redemption_count) == (ACTIVE, 0)


def test_a_code_is_valid_for_a_user_as_long_as_the_book_says(api: Api, tomorrow: Api) -> None:
    names, user_id = new_codes(2), unique("user")
    book = api.book(codes=names, assigned_code_validity=Duration(seconds=3_600))
    given = [
        api.assign(names[0], user_id).assignment,
        api.assign_random(book.book_id, user_id).assignment,
    ]
    for it in given:
        assert it.expire_time.ToDatetime() - it.assign_time.ToDatetime() == timedelta(hours=1)
    assert shown(api, user_id) == dict.fromkeys(names, "ASSIGNED")
    assert shown(tomorrow, user_id) == dict.fromkeys(names, "EXPIRED")
    # The code itself is not over: another user may have it tomorrow.
    assert tomorrow.get_code(names[0]).effective_state == codes.COUPON_CODE_STATE_ASSIGNED
    with refused("CODE_EXPIRED", StatusCode.FAILED_PRECONDITION) as refusal:
        tomorrow.redeem(names[0], user_id)
    end = given[0].expire_time.ToDatetime().isoformat()
    assert refusal.metadata == {"expire_time": f"{end}+00:00"}
    api.redeem(names[0], user_id)


def test_a_validity_of_another_length_holds_for_the_next_assignment(api: Api) -> None:
    names, user_id = new_codes(2), unique("user")
    book = api.book(codes=names, assigned_code_validity=Duration(seconds=3_600))
    before = api.assign(names[0], user_id).assignment
    api.update(book.book_id, "assigned_code_validity")
    after = api.assign(names[1], user_id).assignment
    assert not after.HasField("expire_time")
    assert [it.assignment for it in coupons(api, user_id)] == [after, before]


def test_coupons_are_listed_by_user_book_and_state_newest_first(api: Api) -> None:
    user_id = unique("user")
    first, second = api.book(codes=3), api.book(codes=1)
    given = [api.assign_random(first.book_id, user_id).assignment.code for _ in range(3)]
    given += [api.assign_random(second.book_id, user_id).assignment.code]
    api.redeem(given[0], user_id)
    api.revoke(given[1], user_id)
    newest_first = given[::-1]
    assert list(shown(api, user_id)) == newest_first
    assert list(shown(api, user_id, book_id=first.book_id)) == newest_first[1:]
    assert list(shown(api, user_id, book_id=str(uuid4()))) == []
    assert list(shown(api, unique("nobody"))) == []
    for state, expected in (
        (ACTIVE, [given[3], given[2]]),
        (REDEEMED, [given[0]]),
        (REVOKED, [given[1]]),
    ):
        found = coupons(api, user_id, state=state)
        assert [it.assignment.code for it in found] == expected
        assert {it.assignment.state for it in found} == {state}
