"""Locking is switched off while locks are held: they still keep others out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import timedelta
from unittest import mock

import pytest
from grpc import StatusCode
from support.ahead import Shop, server_ahead
from support.calls import ALL_OR_NOTHING, batch, extend, get_lock, item, outcomes_of, reasons_of
from support.service import (
    Api,
    books,
    codes,
    lock_grace,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)

from coupon_service.errors import LocksUnavailable
from coupon_service.leases import Leases

OFF = books.LOCK_POLICY_OFF
OPTIONAL = books.LOCK_POLICY_OPTIONAL
REQUIRED = books.LOCK_POLICY_REQUIRED
LOCK_LIFE_MS = 60_000
"""The greatest time of a lock, its grace included."""
GRACE_MS = 1_000


@pytest.fixture
def shop(new_database: Callable[[], AbstractContextManager[str]], redis_url: str) -> Iterator[Shop]:
    with new_database() as database_url:
        settings = settings_for(
            database_url,
            redis_url,
            lock_ttl_default_ms=LOCK_LIFE_MS - GRACE_MS,
            lock_ttl_max_ms=LOCK_LIFE_MS - GRACE_MS,
            **lock_grace(GRACE_MS),
        )
        with server_ahead(settings) as shop:
            yield shop


def book_of(api: Api, code: str) -> str:
    return api.get_code(code).book_id


def code_with_locking(
    api: Api, before: books.LockPolicy.ValueType = OPTIONAL, uses: int = 1
) -> str:
    """The only code of a book whose locking the test switches off."""
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=uses)
    api.book(codes=[code], lock_policy=before, limits=limits)
    return code


@pytest.mark.parametrize("before", [OPTIONAL, REQUIRED])
def test_a_lock_keeps_others_out_after_locking_was_switched_off(
    api: Api, before: books.LockPolicy.ValueType
) -> None:
    code, user, another = code_with_locking(api, before), unique("user"), unique("another")
    held = api.lock(code, user)
    api.update(book_of(api, code), lock_policy=OFF)
    with refused("CODE_LOCKED", StatusCode.FAILED_PRECONDITION):
        api.redeem(code, another)
    for mode in (ALL_OR_NOTHING, redemptions.BATCH_MODE_BEST_EFFORT):
        assert outcomes_of(batch(api, [item(code, another)], mode)) == ["CODE_LOCKED"]
    assert reasons_of(api.validate(code, another)) == ["CODE_LOCKED"]
    assert api.get_code(code).effective_state == codes.COUPON_CODE_STATE_LOCKED
    assert api.validate(code, user, lock_token=held.lock_token).valid
    redeemed = api.redeem(code, user, lock_token=held.lock_token).redemption
    assert redeemed.lock_id == held.lock.lock_id


def test_its_holder_needs_no_token_then(api: Api) -> None:
    code, user = code_with_locking(api, REQUIRED), unique("user")
    held = api.lock(code, user)
    api.update(book_of(api, code), lock_policy=OFF)
    assert api.redeem(code, user).redemption.lock_id == held.lock.lock_id


def test_nobody_locks_or_extends_once_locking_is_off(api: Api) -> None:
    code, user = code_with_locking(api, uses=2), unique("user")
    held = api.lock(code, user)
    api.update(book_of(api, code), lock_policy=OFF)
    for call in (
        lambda: api.lock(code, user),
        lambda: api.lock(code, unique("another")),
        lambda: extend(api, held.lock_token),
    ):
        with refused("INVALID_STATE_TRANSITION", StatusCode.FAILED_PRECONDITION) as it:
            call()
        assert it.metadata == {"state": "LOCK_POLICY_OFF"}
    assert get_lock(api, held.lock.lock_id) == held.lock
    api.unlock(held.lock_token)
    api.redeem(code, unique("another"))


def test_what_was_extended_before_is_answered_as_it_was(api: Api) -> None:
    code, user = code_with_locking(api), unique("user")
    held, request_id = api.lock(code, user), unique("request")
    extended = extend(api, held.lock_token, ttl_s=100, request_id=request_id)
    api.update(book_of(api, code), lock_policy=OFF)
    again = extend(api, held.lock_token, ttl_s=100, request_id=request_id)
    assert (again.lock, again.replayed) == (extended.lock, True)


def test_locks_are_minded_as_long_as_one_can_be_held_and_not_longer(shop: Shop) -> None:
    api, code = shop.api, code_with_locking(shop.api, uses=3)
    api.update(book_of(api, code), lock_policy=OFF)
    away = mock.patch.object(Leases, "acquire_transient", side_effect=LocksUnavailable)
    with away, refused("LOCKS_UNAVAILABLE"):
        api.redeem(code, unique("user"))
    api.redeem(code, unique("user"))
    shop.clock.ahead += timedelta(milliseconds=LOCK_LIFE_MS)
    with away:
        api.redeem(code, unique("user"))


def test_other_changes_of_the_book_leave_it_at_that(shop: Shop) -> None:
    api, code = shop.api, code_with_locking(shop.api)
    api.lock(code, unique("user"))
    book_id = book_of(api, code)
    api.update(book_id, lock_policy=OFF)
    shop.clock.ahead += timedelta(milliseconds=LOCK_LIFE_MS // 2)
    api.update(book_id, lock_policy=OFF)
    api.update(book_id, name="autumn")
    with refused("CODE_LOCKED"):
        api.redeem(code, unique("another"))
    shop.clock.ahead += timedelta(milliseconds=LOCK_LIFE_MS // 2)
    with mock.patch.object(Leases, "acquire_transient", side_effect=LocksUnavailable):
        api.redeem(code, unique("another"))


def test_locking_that_is_switched_on_again_is_as_before(api: Api) -> None:
    code, user = code_with_locking(api), unique("user")
    held = api.lock(code, user)
    api.update(book_of(api, code), lock_policy=OFF)
    api.update(book_of(api, code), lock_policy=REQUIRED)
    assert api.lock(code, user).lock == held.lock
    with refused("LOCK_REQUIRED"):
        api.redeem(code, user)


def test_a_book_that_never_had_locks_never_touches_redis(api: Api) -> None:
    made, draft = new_codes(2)
    api.book(codes=[made], lock_policy=OFF)
    book = api.draft(lock_policy=OPTIONAL)
    api.import_codes(book.book_id, [draft])
    api.update(book.book_id, lock_policy=OFF)
    api.activate(book.book_id)
    with mock.patch.object(Leases, "acquire_transient", side_effect=LocksUnavailable):
        api.redeem(made, unique("user"))
        api.redeem(draft, unique("user"))
