"""Requests and answers of RedemptionService about locks."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from support.ledger_rows import ID, NOW
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.model import LockState, LockView, bucket_of_event
from coupon_service.model.codes import bucket_of
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import locks
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.v1 import redemption_service_pb2 as pb


def rpc() -> RequestContext:
    return RequestContext(caller="shop")


def read_lock(**values: Any) -> Any:
    message = pb.LockCodeRequest(code="ab-cd", user_id="u", request_id="r")
    message.MergeFrom(pb.LockCodeRequest(**values))
    return locks.read_lock(message, rpc())


def test_a_lock_is_named_by_its_attempt() -> None:
    command = read_lock()
    assert command.lock_id == command.event_id
    assert bucket_of_event(command.lock_id) == bucket_of("ABCD")
    assert command.ttl_ms is None


@pytest.mark.parametrize(
    "changed",
    [
        {"user_id": "v"},
        {"book_id": str(ID)},
        {"ttl": Duration(seconds=1)},
        {"metadata": {"till": 7}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_other_parameters_are_distinguished_from_a_repeat(changed: dict[str, Any]) -> None:
    command, other = read_lock(), read_lock(**changed)
    assert other.event_id == command.event_id
    assert other.fingerprint != command.fingerprint


def test_a_lifetime_is_read_in_milliseconds() -> None:
    assert read_lock(ttl=Duration(seconds=1, nanos=500_000_000)).ttl_ms == 1_500


@pytest.mark.parametrize(
    "ttl",
    [Duration(), Duration(seconds=86_401), Duration(seconds=31_536_000), Duration(seconds=-1)],
    ids=["0", "more than a day", "a year", "negative"],
)
def test_a_lifetime_of_nothing_or_a_year_is_refused(ttl: Duration) -> None:
    assert bad_fields(lambda: read_lock(ttl=ttl)) == ["ttl"]
    extend = pb.ExtendLockRequest(lock_token="t", ttl=ttl)
    assert bad_fields(lambda: locks.read_extend(extend, rpc())) == ["ttl"]


def test_a_bad_lock_names_every_field() -> None:
    message = pb.LockCodeRequest(code="", book_id="x", user_id="", ttl=Duration())
    assert bad_fields(lambda: locks.read_lock(message, rpc())) == [
        "code",
        "book_id",
        "user_id",
        "ttl",
    ]


def test_an_extension_needs_a_token() -> None:
    good = pb.ExtendLockRequest(lock_token="t", ttl=Duration(seconds=5), request_id="r")
    token, ttl_ms, call = locks.read_extend(good, rpc())
    assert (token, ttl_ms, call.request_id) == ("t", 5_000, "r")
    assert bad_fields(lambda: locks.read_extend(pb.ExtendLockRequest(), rpc())) == ["lock_token"]


def test_a_lock_is_released_by_its_token_or_its_id() -> None:
    by_token = locks.read_unlock(pb.UnlockCodeRequest(lock_token="t"), rpc())
    by_id = locks.read_unlock(pb.UnlockCodeRequest(lock_id=str(ID)), rpc())
    assert by_token[:2] == ("t", None)
    assert by_id[:2] == (None, ID)
    for bad, field in (
        (pb.UnlockCodeRequest(), "lock"),
        (pb.UnlockCodeRequest(lock_token=""), "lock_token"),
        (pb.UnlockCodeRequest(lock_id="x"), "lock_id"),
    ):
        assert bad_fields(lambda bad=bad: locks.read_unlock(bad, rpc())) == [field]


def test_locks_are_listed_of_a_user_or_of_a_book() -> None:
    assert locks.read_list(pb.ListLocksRequest(user_id="u"), rpc(), PAGES)[:2] == ("u", None)
    assert locks.read_list(pb.ListLocksRequest(book_id=str(ID)), rpc(), PAGES)[:2] == (
        None,
        ID,
    )
    for bad, field in (
        (pb.ListLocksRequest(), "filter"),
        (pb.ListLocksRequest(user_id=" "), "user_id"),
        (pb.ListLocksRequest(book_id="x"), "book_id"),
    ):
        assert bad_fields(lambda bad=bad: locks.read_list(bad, rpc(), PAGES)) == [field]


def test_a_lock_is_looked_at_by_its_id() -> None:
    assert locks.read_lock_id(pb.GetLockRequest(lock_id=str(ID))) == ID
    assert bad_fields(lambda: locks.read_lock_id(pb.GetLockRequest())) == ["lock_id"]


def test_a_lock_is_shown_as_it_is() -> None:
    view = LockView(ID, "ABCD", ID, "u", LockState.RELEASED, 7, NOW, NOW + timedelta(minutes=1))
    assert locks.lock_message(view) == pb.Lock(
        lock_id=str(ID),
        code="ABCD",
        book_id=str(ID),
        user_id="u",
        state=pb.LOCK_STATE_RELEASED,
        fence=7,
        create_time=to_timestamp(NOW),
        expire_time=to_timestamp(NOW + timedelta(minutes=1)),
    )
