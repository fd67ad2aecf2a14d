"""Locks: one redemption of a code, reserved for one user, for a time."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from support.calls import (
    about,
    coupons,
    extend,
    get_lock,
    locking_code,
    locks_of,
    pause,
    ttl_s,
    unlock_by_id,
)
from support.service import Api, audit, books, codes, new_codes, pages, redemptions, refused, unique

OFF = books.LOCK_POLICY_OFF
OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
HELD = redemptions.LOCK_STATE_HELD

UNKNOWN_ID = "00000000-0000-4000-8000-000000000000"


# --- taking one ---------------------------------------------------------------------------------


def test_a_lock_is_answered_kept_and_in_the_ledger(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    answer = api.lock(code.lower(), user, ttl_s=30)
    lock = answer.lock
    assert (lock.code, lock.user_id, lock.state) == (code, user, HELD)
    assert lock.book_id == api.get_code(code).book_id
    assert ttl_s(lock) == about(30)
    assert lock.fence > 0
    assert not answer.replayed
    assert get_lock(api, lock.lock_id) == lock
    assert locks_of(api, user_id=user) == [lock]

    (event,) = api.events(code=code)
    assert event.type == audit.AUDIT_EVENT_TYPE_LOCKED
    assert event.event_id == event.lock_id == lock.lock_id
    assert (event.user_id, event.fence) == (user, lock.fence)
    assert (event.event_time, event.expire_time) == (lock.create_time, lock.expire_time)
    assert (event.state_before, event.state_after) == ("AVAILABLE", "AVAILABLE")


def test_fencing_numbers_grow(api: Api) -> None:
    names = new_codes(4)
    api.book(codes=names, lock_policy=OPTIONAL)
    fences = [api.lock(code, unique("user")).lock.fence for code in names]
    assert fences == sorted(set(fences))


def test_a_lock_keeps_everybody_else_out_and_says_for_how_long(api: Api) -> None:
    code = locking_code(api)
    api.lock(code, unique("holder"), ttl_s=30)
    for call in (api.lock, api.redeem):
        with refused("CODE_LOCKED", StatusCode.FAILED_PRECONDITION) as it:
            call(code, unique("another"))
        left_ms = int(it.metadata["retry_after_ms"])
        assert it.retry_after_s == left_ms / 1000
        # As long as the token, and until nobody who was admitted in time can be still at it.
        assert 25_000 < left_ms < 40_000


def test_the_holder_who_asks_again_has_the_same_lock_as_it_is(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    first = api.lock(code, user, ttl_s=30)
    again = api.lock(code, user, ttl_s=300)
    assert again.replayed
    assert again.lock == first.lock
    assert again.lock_token == first.lock_token
    extended = extend(api, first.lock_token, ttl_s=60)
    assert api.lock(code, user).lock == extended.lock
    events = api.events(code=code)
    assert {it.lock_id for it in events} == {first.lock.lock_id}
    assert {it.fence for it in events} == {first.lock.fence}
    assert api.event_names(code=code) == ["LOCKED", "LOCKED", "LOCK_EXTENDED", "LOCKED"]
    taken, asked_again, _, _ = events
    assert taken.event_id == first.lock.lock_id != asked_again.event_id
    assert not asked_again.HasField("expire_time")


def test_a_code_holds_as_many_locks_as_it_has_uses_left(api: Api) -> None:
    code = locking_code(api, uses=3)
    first, second = (api.lock(code, unique("holder")) for _ in range(2))
    redeemed = api.redeem(code, "walk-in").redemption  # the third use
    for call in (api.lock, api.redeem):
        with refused("CODE_LOCKED"):
            call(code, unique("another"))
    api.redeem(code, first.lock.user_id, lock_token=first.lock_token)
    with refused("CODE_LOCKED"):
        api.redeem(code, unique("another"))
    api.rollback(redeemed.redemption_id)
    api.lock(code, unique("third"))
    api.redeem(code, second.lock.user_id, lock_token=second.lock_token)
    with refused("CODE_LOCKED"):
        api.lock(code, unique("another"))


def test_a_code_without_a_limit_holds_any_number_of_locks(api: Api) -> None:
    code = locking_code(api, uses=0)
    held = [api.lock(code, unique("holder")) for _ in range(20)]
    api.redeem(code, "walk-in")
    assert len({it.lock.lock_id for it in held}) == 20


def test_a_user_holds_five_locks_at_a_time(api: Api) -> None:
    names, user, business = new_codes(7), unique("user"), unique("business")
    api.book(codes=names, lock_policy=OPTIONAL, business_id=business)
    lock = partial(api.lock, business_id=business)
    held = [lock(code, user) for code in names[:5]]
    with refused("LOCK_LIMIT_EXCEEDED", StatusCode.FAILED_PRECONDITION) as it:
        lock(names[5], user)
    assert it.metadata == {"limit": "5"}
    assert lock(names[0], user).replayed
    lock(names[5], unique("another"))  # the permit that was refused is free
    api.unlock(held[0].lock_token)
    lock(names[0], user)
    api.redeem(names[1], user, lock_token=held[1].lock_token, business_id=business)
    lock(names[6], user)
    with refused("LOCK_LIMIT_EXCEEDED"):
        lock(api.code(lock_policy=OPTIONAL, business_id=business), user)


def test_who_has_the_same_name_at_another_business_is_somebody_else(api: Api) -> None:
    codes = {unique("here"): new_codes(6), unique("there"): new_codes(6)}
    user, (here, _) = unique("user"), codes
    for business, names in codes.items():
        api.book(codes=names, lock_policy=OPTIONAL, business_id=business)
    for business, names in codes.items():
        for code in names[:5]:
            api.lock(code, user, business_id=business)
        with refused("LOCK_LIMIT_EXCEEDED") as it:
            api.lock(names[5], user, business_id=business)
        assert it.metadata == {"limit": "5"}
    with refused("LOCK_LIMIT_EXCEEDED"):
        api.lock(codes[here][5], user, business_id=here)


@pytest.mark.parametrize(
    ("book_s", "requested_s", "granted_s"),
    [
        pytest.param({}, None, 60, id="the server's default"),
        pytest.param({}, 3_600, 900, id="the server's greatest"),
        pytest.param({"default_lock_ttl": 5}, None, 5, id="the book's default"),
        pytest.param({"default_lock_ttl": 5}, 30, 30, id="what is requested before the default"),
        pytest.param({"max_lock_ttl": 10}, 60, 10, id="the book's greatest"),
        pytest.param({"max_lock_ttl": 10}, None, 10, id="the book's greatest before the default"),
        pytest.param({"max_lock_ttl": 1_800}, 3_600, 900, id="the server's before the book's"),
    ],
)
def test_the_service_chooses_how_long_a_lock_lives(
    api: Api, book_s: dict[str, int], requested_s: float | None, granted_s: float
) -> None:
    durations: dict[str, Any] = {
        name: Duration(seconds=seconds) for name, seconds in book_s.items()
    }
    answer = api.lock(locking_code(api, **durations), unique("user"), ttl_s=requested_s)
    assert ttl_s(answer.lock) == about(granted_s)
    extended = extend(api, answer.lock_token, ttl_s=requested_s)
    assert ttl_s(extended.lock) == about(granted_s)


@pytest.mark.parametrize("requested_s", [0, 0.999, 1.0005, -1, 86_401])
def test_a_lifetime_that_makes_no_sense_is_a_bad_request(api: Api, requested_s: float) -> None:
    code, user = locking_code(api), unique("user")
    with refused("INVALID_ARGUMENT", StatusCode.INVALID_ARGUMENT) as it:
        api.lock(code, user, ttl_s=requested_s)
    assert it.fields == ["ttl"]
    token = api.lock(code, user).lock_token
    with refused("INVALID_ARGUMENT") as it:
        extend(api, token, ttl_s=requested_s)
    assert it.fields == ["ttl"]


def test_a_book_without_locking_has_no_locks(api: Api) -> None:
    with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION):
        api.lock(api.code(lock_policy=OFF), "ann")


def test_what_cannot_be_redeemed_cannot_be_locked(api: Api) -> None:
    used, off, paused = (locking_code(api) for _ in range(3))
    api.redeem(used, "ann")
    api.disable(off)
    pause(api, api.get_code(paused).book_id)
    given = locking_code(api, assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED)
    (unknown,) = new_codes(1)
    for code, reason in {
        used: "CODE_ALREADY_REDEEMED",
        off: "CODE_DISABLED",
        paused: "BOOK_NOT_ACTIVE",
        given: "CODE_NOT_ASSIGNED_TO_USER",
        unknown: "CODE_NOT_FOUND",
    }.items():
        with refused(reason):
            api.lock(code, unique("user"))
        assert "LOCKED" not in api.event_names(code=code)


def test_the_order_is_not_looked_at_before_there_is_one(api: Api) -> None:
    code, user = locking_code(api, min_order_amount_minor=5_000), unique("user")
    token = api.lock(code, user).lock_token
    with refused("ORDER_BELOW_MINIMUM"):
        api.redeem(code, user, lock_token=token)
    assert [it.code for it in locks_of(api, user_id=user)] == [code]


# --- ending one ---------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["token", "id"])
def test_a_lock_that_is_released_lets_others_in(api: Api, by: str) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user)

    def release() -> redemptions.UnlockCodeResponse:
        if by == "id":
            return unlock_by_id(api, held.lock.lock_id)
        return api.unlock(held.lock_token)

    answer = release()
    assert (answer.lock.state, answer.replayed) == (redemptions.LOCK_STATE_RELEASED, False)
    assert get_lock(api, held.lock.lock_id) == answer.lock
    again = release()
    assert (again.lock, again.replayed) == (answer.lock, True)
    assert api.event_names(code=code) == ["LOCKED", "UNLOCKED"]
    assert locks_of(api, user_id=user) == []
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)
    newer = api.lock(code, unique("another"))
    with refused("LOCK_EXPIRED"):
        api.redeem(code, user, lock_token=held.lock_token)
    assert release().replayed  # and it does not touch the lock of the other
    api.redeem(code, newer.lock.user_id, lock_token=newer.lock_token)


def test_a_lock_that_was_used_cannot_be_released(api: Api) -> None:
    code, user = locking_code(api), unique("user")
    held = api.lock(code, user)
    api.redeem(code, user, lock_token=held.lock_token)
    with refused("LOCK_EXPIRED", StatusCode.FAILED_PRECONDITION):
        api.unlock(held.lock_token)
    with refused("LOCK_EXPIRED"):
        unlock_by_id(api, held.lock.lock_id)


def test_what_is_no_lock_is_not_found(api: Api) -> None:
    code = locking_code(api)
    redemption_id = api.redeem(code, "ann").redemption.redemption_id
    for lock_id in (UNKNOWN_ID, redemption_id):
        with refused("LOCK_NOT_FOUND", StatusCode.NOT_FOUND):
            get_lock(api, lock_id)
        with refused("LOCK_NOT_FOUND", StatusCode.NOT_FOUND):
            unlock_by_id(api, lock_id)


def test_locks_are_released_whatever_became_of_the_book(api: Api) -> None:
    (code,), user = new_codes(1), unique("user")
    book = api.book(codes=[code], lock_policy=OPTIONAL)
    held = api.lock(code, user)
    api.update(book.book_id, lock_policy=OFF)
    pause(api, book.book_id)
    assert api.unlock(held.lock_token).lock.state == redemptions.LOCK_STATE_RELEASED


# --- looking at them ----------------------------------------------------------------------------


def test_locks_are_listed_in_pages_the_next_to_expire_first(api: Api) -> None:
    names, user = new_codes(5), unique("user")
    book = api.book(codes=names, lock_policy=OPTIONAL)
    lifetimes_s = (50, 20, 40, 10, 30)
    held = [api.lock(code, user, ttl_s=s).lock for code, s in zip(names, lifetimes_s, strict=True)]
    in_order = sorted(held, key=lambda lock: lock.expire_time.ToNanoseconds())
    for whose in ({"user_id": user}, {"book_id": book.book_id}):
        for page_size, sizes in ((2, [2, 2, 1]), (5, [5]), (1, [1] * 5)):
            request = redemptions.ListLocksRequest(page_size=page_size, **whose)
            found = pages(api.redemptions.ListLocks, request, "locks")
            assert [len(page) for page in found] == sizes
            assert [lock for page in found for lock in page] == in_order
    unlock_by_id(api, in_order[0].lock_id)
    assert locks_of(api, user_id=user) == in_order[1:]
    assert locks_of(api, book_id=book.book_id) == in_order[1:]


def test_a_list_of_locks_is_of_a_user_or_of_a_book(api: Api) -> None:
    assert locks_of(api, user_id=unique("nobody")) == []
    assert locks_of(api, book_id=UNKNOWN_ID) == []
    with refused("INVALID_ARGUMENT") as it:
        locks_of(api)
    assert it.fields == ["filter"]


def test_a_code_is_shown_as_locked_when_no_use_is_left_beside_the_locks(api: Api) -> None:
    code, user = locking_code(api, uses=2), unique("user")
    api.assign(code, user)

    def states() -> tuple[str, str]:
        (coupon,) = coupons(api, user)
        seen = (api.get_code(code).effective_state, coupon.effective_state)
        name = codes.CouponCodeState.Name
        return name(seen[0])[18:], name(seen[1])[18:]

    first = api.lock(code, user)
    assert states() == ("ASSIGNED", "ASSIGNED")
    second = api.lock(code, unique("another"))
    assert states() == ("LOCKED", "LOCKED")
    assert api.get_code(code).state == codes.COUPON_CODE_STATE_ASSIGNED
    api.redeem(code, second.lock.user_id, lock_token=second.lock_token)
    assert states() == ("LOCKED", "LOCKED")
    api.unlock(first.lock_token)
    assert states() == ("ASSIGNED", "ASSIGNED")
    api.redeem(code, user)
    assert states() == ("REDEEMED", "REDEEMED")
