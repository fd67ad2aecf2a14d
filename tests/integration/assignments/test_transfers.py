"""TransferAssignment: a code goes from one user to another."""

from __future__ import annotations

from datetime import timedelta

import pytest
from grpc import StatusCode
from support.service import (
    Api,
    assignments,
    audit,
    books,
    new_codes,
    redemptions,
    refused,
    struct,
    unique,
)

ACTIVE = assignments.ASSIGNMENT_STATE_ACTIVE
REVOKED = assignments.ASSIGNMENT_STATE_REVOKED
REQUIRED = books.ASSIGNMENT_POLICY_REQUIRED
OPTIONAL = books.LOCK_POLICY_OPTIONAL


def coupons(api: Api, user_id: str) -> list[assignments.Assignment]:
    request = assignments.ListUserCouponsRequest(user_id=user_id)
    return [it.assignment for it in api.assignments.ListUserCoupons(request).coupons]


def test_the_receiver_has_it_with_the_expiry_of_the_giver(api: Api) -> None:
    (code,) = new_codes(1)
    api.book(codes=[code], assignment_policy=REQUIRED, assigned_code_validity=timedelta(days=7))
    giver, receiver = unique("giver"), unique("receiver")
    given = api.assign(code, giver).assignment
    answer = api.transfer(code, giver, receiver, metadata=struct(gift=True))
    received = answer.assignment
    assert not answer.replayed
    assert (received.user_id, received.state) == (receiver, ACTIVE)
    assert received.expire_time == given.expire_time
    assert received.metadata == struct(gift=True)
    assert coupons(api, receiver) == [received]
    (gone,) = coupons(api, giver)
    assert gone.state == REVOKED
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, giver)
    api.redeem(code, receiver)


def test_both_users_find_it_in_the_ledger(api: Api) -> None:
    code, giver, receiver = api.code(), unique("giver"), unique("receiver")
    api.assign(code, giver)
    api.transfer(code, giver, receiver)

    def events(user_id: str) -> list[tuple[str, str]]:
        request = audit.ListAuditEventsRequest(user_id=user_id)
        found = api.audit.ListAuditEvents(request).events
        names = audit.AuditEventType.Name
        return [
            (names(it.type).removeprefix("AUDIT_EVENT_TYPE_"), it.other_user_id) for it in found
        ]

    assert events(giver) == [("ASSIGNMENT_TRANSFERRED", receiver), ("ASSIGNED", "")]
    assert events(receiver) == [("ASSIGNED", giver)]


def test_a_rollback_credits_the_giver_who_redeemed(api: Api) -> None:
    limits = books.BookLimits(max_redemptions_per_code=5, max_redemptions_per_user=1)
    (code,) = new_codes(1)
    book = api.book(codes=[code], limits=limits)
    giver, receiver = unique("giver"), unique("receiver")
    api.assign(code, giver)
    redeemed = api.redeem(code, giver).redemption
    api.transfer(code, giver, receiver)
    api.redeem(code, receiver)
    with refused("USER_LIMIT_EXCEEDED"):
        api.redeem(code, receiver)
    api.rollback(redeemed.redemption_id)
    (gone,) = coupons(api, giver)
    assert gone.redemption_count == 0
    (received,) = coupons(api, receiver)
    assert received.redemption_count == 1
    assert api.stats(book.book_id).redemption_count == 1


def test_a_lock_of_the_giver_is_in_the_way_unless_its_token_is_given(api: Api) -> None:
    code = api.code(lock_policy=OPTIONAL, assignment_policy=REQUIRED)
    giver, receiver = unique("giver"), unique("receiver")
    api.assign(code, giver)
    held = api.lock(code, giver, ttl_s=60)
    with refused("CODE_LOCKED", StatusCode.FAILED_PRECONDITION) as it:
        api.transfer(code, giver, receiver)
    assert 0 < int(it.metadata["retry_after_ms"]) <= 60_000
    with refused("LOCK_TOKEN_MISMATCH"):
        api.transfer(code, giver, receiver, lock_token=held.lock_token[:-2] + "xx")
    api.transfer(code, giver, receiver, lock_token=held.lock_token)
    lock = api.redemptions.GetLock(redemptions.GetLockRequest(lock_id=held.lock.lock_id)).lock
    assert lock.state == redemptions.LOCK_STATE_RELEASED
    # Its permit is free at once.
    api.lock(code, receiver)


@pytest.mark.parametrize(
    ("giver", "receiver", "fields"),
    [("ann", "ann", ["to_user_id"]), ("", "", ["from_user_id", "to_user_id"])],
)
def test_it_is_between_two_users(api: Api, giver: str, receiver: str, fields: list[str]) -> None:
    code = api.code()
    with refused("INVALID_ARGUMENT") as it:
        api.transfer(code, giver, receiver)
    assert set(it.fields) >= set(fields)
