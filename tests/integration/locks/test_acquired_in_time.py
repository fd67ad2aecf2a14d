"""A lock that was acquired in time is honoured: what ends later does not count."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from support.ahead import Shop, server_ahead
from support.calls import (
    ALL_OR_NOTHING,
    BEST_EFFORT,
    batch,
    close,
    extend,
    get_lock,
    item,
    outcomes_of,
    pause,
    reasons_of,
    tried,
)
from support.service import (
    Api,
    books,
    euros,
    new_codes,
    redemptions,
    refused,
    settings_for,
    unique,
)

OFF = books.LOCK_POLICY_OFF
OPTIONAL = books.LOCK_POLICY_OPTIONAL
MINUTE = timedelta(minutes=1)
LOCK_S = 600
ENDS = ["book", "assignment"]
REASONS = {"book": "BOOK_EXPIRED", "assignment": "CODE_EXPIRED"}

every_end = pytest.mark.parametrize("ends", ENDS)


@pytest.fixture(scope="module")
def running(
    new_database: Callable[[], AbstractContextManager[str]], redis_server_url: str
) -> Iterator[Shop]:
    with new_database() as url, server_ahead(settings_for(url, redis_server_url)) as shop:
        yield shop


@pytest.fixture
def shop(running: Shop) -> Iterator[Shop]:
    yield running
    running.clock.ahead = timedelta()


@pytest.fixture
def api(shop: Shop) -> Api:
    return shop.api


def moment(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp


def locked_before(
    shop: Shop, ends: str, user: str, **fields: Any
) -> tuple[str, redemptions.LockCodeResponse]:
    """A code that the user has locked, in the book or with the assignment that is over by now."""
    api, (code,) = shop.api, new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=3)
    fields = {"lock_policy": OPTIONAL, "limits": limits, **fields}
    if ends == "book":
        api.book(codes=[code], end_time=moment(datetime.now(UTC) + MINUTE), **fields)
    else:
        validity = Duration(seconds=60)
        api.book(
            codes=[code],
            assigned_code_validity=validity,
            assignment_policy=books.ASSIGNMENT_POLICY_REQUIRED,
            **fields,
        )
        api.assign(code, user)
    held = api.lock(code, user, ttl_s=LOCK_S)
    shop.clock.ahead += MINUTE
    return code, held


@every_end
def test_its_token_redeems_also_after_the_end(shop: Shop, ends: str) -> None:
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, ends, user)
    with refused(REASONS[ends], StatusCode.FAILED_PRECONDITION):
        api.redeem(code, user)
    assert get_lock(api, held.lock.lock_id).state == redemptions.LOCK_STATE_HELD
    assert api.validate(code, user, lock_token=held.lock_token).valid
    redeemed = api.redeem(code, user, lock_token=held.lock_token).redemption
    assert redeemed.lock_id == held.lock.lock_id
    with refused(REASONS[ends]):  # and once
        api.redeem(code, user, lock_token=held.lock_token)


@every_end
@pytest.mark.parametrize("mode", [BEST_EFFORT, ALL_OR_NOTHING])
def test_so_does_a_batch(shop: Shop, ends: str, mode: redemptions.BatchMode.ValueType) -> None:
    api, user = shop.api, unique("user")
    one, other = locked_before(shop, ends, user), shop.api.code()
    code, held = one
    assert outcomes_of(batch(api, [item(other, user), item(code, user)], mode))[1] == REASONS[ends]
    items = [item(api.code(), user), item(code, user, lock_token=held.lock_token)]
    assert outcomes_of(batch(api, items, mode)) == ["OK", "OK"]


@every_end
def test_without_its_token_and_for_more_time_it_is_judged_now(shop: Shop, ends: str) -> None:
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, ends, user)
    another_user = unique("another")
    for call in (
        lambda: api.redeem(code, user),  # which would use the lock up
        lambda: api.lock(code, user),
        lambda: extend(api, held.lock_token, ttl_s=LOCK_S),
    ):
        with refused(REASONS[ends], StatusCode.FAILED_PRECONDITION):
            call()
    with refused("BOOK_EXPIRED" if ends == "book" else "CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, another_user, lock_token=held.lock_token)
    assert reasons_of(api.validate(code, user)) == [REASONS[ends]]
    assert get_lock(api, held.lock.lock_id) == held.lock
    api.redeem(code, user, lock_token=held.lock_token)


def test_the_rules_are_those_of_now(shop: Shop) -> None:
    """An end that was set to a time before the lock was acquired stops it, and so does a start that
    has not come."""
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, "book", user)
    acquired = held.lock.create_time.ToDatetime(UTC)
    redeem = api.redeem_request(code, user, lock_token=held.lock_token)
    api.update(held.lock.book_id, end_time=moment(acquired - MINUTE / 2))
    assert tried(lambda: api.redemptions.RedeemCode(redeem)) == "BOOK_EXPIRED"
    ends = moment(shop.clock.now() + 2 * MINUTE)
    api.update(held.lock.book_id, end_time=ends, start_time=moment(shop.clock.now() + MINUTE))
    assert tried(lambda: api.redemptions.RedeemCode(redeem)) == "BOOK_NOT_STARTED"
    api.update(held.lock.book_id, start_time=moment(acquired + MINUTE / 2))
    assert tried(lambda: api.redemptions.RedeemCode(redeem)) == "OK"


@every_end
def test_what_was_stopped_on_purpose_stays_so(shop: Shop, ends: str) -> None:
    api = shop.api
    stops: list[tuple[str, Callable[[str], object]]] = [
        ("BOOK_NOT_ACTIVE", lambda code: pause(api, api.get_code(code).book_id)),
        ("BOOK_NOT_ACTIVE", lambda code: close(api, api.get_code(code).book_id)),
        ("CODE_DISABLED", api.disable),
    ]
    for reason, stop in stops:
        user = unique("user")
        code, held = locked_before(shop, ends, user)
        stop(code)
        with refused(reason):
            api.redeem(code, user, lock_token=held.lock_token)
        shop.clock.ahead = timedelta()


def test_an_assignment_that_was_revoked_stays_so(shop: Shop) -> None:
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, "assignment", user)
    api.revoke(code, user)
    with refused("CODE_NOT_ASSIGNED_TO_USER"):
        api.redeem(code, user, lock_token=held.lock_token)


@every_end
def test_a_lock_that_has_ended_is_worth_nothing(shop: Shop, ends: str) -> None:
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, ends, user)
    api.unlock(held.lock_token)
    with refused(REASONS[ends]):
        api.redeem(code, user, lock_token=held.lock_token)
    late, ran_out = unique("late"), timedelta(seconds=LOCK_S)
    shop.clock.ahead = timedelta()
    code, held = locked_before(shop, ends, late)
    shop.clock.ahead += ran_out
    found = reasons_of(api.validate(code, late, lock_token=held.lock_token))
    assert found == [REASONS[ends], "LOCK_EXPIRED"]


def test_it_reserves_a_use_of_the_code_and_nothing_else(shop: Shop) -> None:
    api, user = shop.api, unique("user")
    discount = books.Discount(percent_off=books.PercentOff(basis_points=1_000))
    limits = books.BookLimits(max_redemptions_per_code=3, max_redemptions_per_user=2)
    code, held = locked_before(
        shop, "book", user, limits=limits, discount=discount, currency_code="EUR"
    )
    book_id, token = held.lock.book_id, held.lock_token
    api.update(book_id, min_order_amount_minor=5_000)
    with refused("ORDER_BELOW_MINIMUM"):
        api.redeem(code, user, lock_token=token, order_amount=euros(4_000))
    discount.percent_off.basis_points = 2_000
    api.update(book_id, discount=discount)
    redeemed = api.redeem(code, user, lock_token=token, order_amount=euros(10_000)).redemption
    assert redeemed.discount == euros(2_000)


def test_it_is_honoured_also_when_locking_was_switched_off(shop: Shop) -> None:
    api, user = shop.api, unique("user")
    code, held = locked_before(shop, "book", user)
    api.update(held.lock.book_id, lock_policy=OFF)
    api.redeem(code, user, lock_token=held.lock_token)
