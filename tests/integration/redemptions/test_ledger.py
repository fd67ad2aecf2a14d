"""The ledger: one row for every change of anything, with who did what, never altered."""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from support.service import (
    Api,
    audit,
    books,
    codes,
    euros,
    new_codes,
    redemptions,
    refused,
    struct,
    unique,
)
from support.waiting import until

from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub

REDEEMED = audit.AUDIT_EVENT_TYPE_REDEEMED

CALLER = {"caller", "peer", "user_agent", "request_id"}
WHO = CALLER | {"event_id", "event_time", "sequence", "type", "book_id"}
"""Columns that every row has."""


def columns(event: audit.AuditEvent) -> dict[str, Any]:
    """What a row says beside what every row does."""
    for column in WHO - {"user_agent"}:
        assert getattr(event, column), column
    assert event.caller == "anonymous"
    assert event.peer.startswith("ipv4:127.0.0.1:")
    assert event.user_agent.startswith("grpc-python/")
    fields = MessageToDict(event, preserving_proto_field_name=True)
    return {name: value for name, value in fields.items() if name not in WHO}


def one_row(
    api: Api, book_id: str, change: Callable[[str], Any], name: str
) -> tuple[Any, dict[str, Any], audit.AuditEvent]:
    """The answer to a change, and the columns of the only row it wrote, and the row."""
    before, request_id = len(api.events(book_id=book_id)), unique("request")
    began = datetime.now(UTC)
    answer = change(request_id)
    ended = datetime.now(UTC)
    rows = api.events(book_id=book_id)
    assert len(rows) == before + 1
    row = rows[-1]
    assert audit.AuditEventType.Name(row.type) == f"AUDIT_EVENT_TYPE_{name}"
    assert (row.book_id, row.request_id) == (book_id, request_id)
    assert began <= row.event_time.ToDatetime(UTC) <= ended
    return answer, columns(row), row


@pytest.fixture(scope="module", autouse=True)
def short_lock(api: Api) -> redemptions.Lock:
    """A lock that will have expired by the end of these tests."""
    return api.lock(api.code(lock_policy=books.LOCK_POLICY_OPTIONAL), "u", ttl_s=1).lock


# --- books and chunks ---------------------------------------------------------------------------


def test_each_change_of_a_book_is_a_row(api: Api) -> None:
    book = api.draft()
    (made,) = api.events(book_id=book.book_id)
    assert columns(made) == {"state_after": "DRAFT"}
    assert made.type == audit.AUDIT_EVENT_TYPE_BOOK_CREATED
    assert made.event_time == book.create_time

    def update(request_id: str) -> books.CouponBook:
        request = books.UpdateCouponBookRequest(
            coupon_book=books.CouponBook(
                book_id=book.book_id,
                name="n",
                max_lock_ttl=Duration(seconds=9),
                assigned_code_validity=Duration(seconds=9),
            ),
            request_id=request_id,
        )
        request.update_mask.paths.extend(["name", "max_lock_ttl", "assigned_code_validity"])
        return api.books.UpdateCouponBook(request).coupon_book

    def step(verb: Any, request_id: str) -> books.CouponBook:
        return verb(api, book.book_id, request_id=request_id)

    activate, pause, close = (
        functools.partial(step, verb) for verb in (Api.activate, Api.pause, Api.close_book)
    )
    changed = {"fields": ["assigned_code_validity", "max_lock_ttl", "name"]}
    for change, name, before, after, metadata in (
        (update, "BOOK_UPDATED", "DRAFT", "DRAFT", changed),
        (activate, "BOOK_ACTIVATED", "DRAFT", "ACTIVE", None),
        (pause, "BOOK_PAUSED", "ACTIVE", "PAUSED", None),
        (activate, "BOOK_ACTIVATED", "PAUSED", "ACTIVE", None),
        (close, "BOOK_CLOSED", "ACTIVE", "CLOSED", None),
    ):
        answer, row, event = one_row(api, book.book_id, change, name)
        expected = {"state_before": before, "state_after": after}
        assert row == expected | ({"metadata": metadata} if metadata else {})
        assert event.event_time == answer.update_time


def test_each_chunk_of_codes_is_a_row(api: Api) -> None:
    book = api.draft()
    (there,) = new_codes(1)
    api.import_codes(api.draft().book_id, [there])
    (new,) = new_codes(1)
    rows = [new, new, there, "?", "??"]
    _, row, _ = one_row(
        api,
        book.book_id,
        lambda request_id: api.import_codes(book.book_id, rows, request_id=request_id),
        "CODES_IMPORTED",
    )
    counts = {"created": 1, "duplicates": 1, "existing": 1, "invalid": 2}
    assert row == {"metadata": counts}
    _, row, _ = one_row(
        api,
        book.book_id,
        lambda request_id: list(
            api.codes.GenerateCodes(
                codes.GenerateCodesRequest(book_id=book.book_id, count=7, request_id=request_id)
            )
        ),
        "CODES_GENERATED",
    )
    assert row == {"metadata": {"count": 7}}


# --- codes --------------------------------------------------------------------------------------


def test_each_change_of_a_code_is_a_row(api: Api) -> None:
    (code,) = new_codes(1)
    limits = books.BookLimits(max_redemptions_per_code=2)
    book = api.book(codes=[code], limits=limits, assigned_code_validity=Duration(seconds=3_600))
    row_of = functools.partial(one_row, api, book.book_id)

    def by_code(verb: Any, *arguments: Any, **fields: Any) -> Callable[[str], Any]:
        return lambda request_id: verb(code.lower(), *arguments, request_id=request_id, **fields)

    given, row, _ = row_of(by_code(api.assign, "u", metadata=struct(why="a")), "ASSIGNED")
    expire_time = given.assignment.expire_time.ToJsonString()
    about = {"code": code, "state_before": "AVAILABLE", "state_after": "ASSIGNED"}
    assert row == about | {"user_id": "u", "expire_time": expire_time, "metadata": {"why": "a"}}

    order = {"order_id": "order 7", "order_amount": euros(1_999), "metadata": struct(till=3)}
    redeemed, row, event = row_of(by_code(api.redeem, "u", **order), "REDEEMED")
    amounts = {
        "user_id": "u",
        "order_id": "order 7",
        "order_amount": {"amount_minor": "1999", "currency_code": "EUR"},
        "discount": {"amount_minor": "199", "currency_code": "EUR"},
    }
    same = {"code": code, "state_before": "ASSIGNED", "state_after": "ASSIGNED"}
    assert row == same | amounts | {"code_redemption_count": 1, "metadata": {"till": 3}}
    assert event.event_id == redeemed.redemption.redemption_id

    second, row, _ = row_of(by_code(api.redeem, "v"), "REDEEMED")
    assert row == {**same, "state_after": "REDEEMED", "user_id": "v", "code_redemption_count": 2}
    redemption_id = second.redemption.redemption_id
    _, row, _ = row_of(
        lambda request_id: api.rollback(
            redemption_id, request_id=request_id, metadata=struct(why="returned")
        ),
        "ROLLED_BACK",
    )
    assert row == {
        "code": code,
        "user_id": "v",
        "redemption_id": redemption_id,
        "state_before": "REDEEMED",
        "state_after": "ASSIGNED",
        "code_redemption_count": 1,
        "metadata": {"why": "returned"},
    }
    redemption_id = redeemed.redemption.redemption_id
    _, row, _ = row_of(
        lambda request_id: api.rollback(redemption_id, request_id=request_id), "ROLLED_BACK"
    )
    assert row == same | amounts | {"redemption_id": redemption_id}

    _, row, _ = row_of(by_code(api.disable), "CODE_DISABLED")
    assert row == {"code": code, "state_before": "ASSIGNED", "state_after": "DISABLED"}
    _, row, _ = row_of(by_code(api.revoke, "u"), "REVOKED")
    off = {"code": code, "state_before": "DISABLED"}
    assert row == off | {"state_after": "DISABLED", "user_id": "u"}
    _, row, _ = row_of(by_code(api.enable), "CODE_ENABLED")
    assert row == off | {"state_after": "AVAILABLE"}

    random, row, _ = row_of(
        lambda request_id: api.assign_random(book.book_id, "w", request_id=request_id), "ASSIGNED"
    )
    expire_time = random.assignment.expire_time.ToJsonString()
    assert row == about | {"user_id": "w", "expire_time": expire_time}


def test_a_benefit_is_recorded_without_amounts(api: Api) -> None:
    (code,) = new_codes(1)
    gift = books.Discount(benefit=books.Benefit(description="A gift"))
    book = api.book(codes=[code], discount=gift, currency_code="")
    _, row, _ = one_row(
        api,
        book.book_id,
        lambda request_id: api.redeem(code, "u", request_id=request_id, order_amount=euros(5)),
        "REDEEMED",
    )
    assert row == {
        "code": code,
        "user_id": "u",
        "state_before": "AVAILABLE",
        "state_after": "REDEEMED",
        "order_amount": {"amount_minor": "5", "currency_code": "EUR"},
        "code_redemption_count": 1,
    }


# --- locks --------------------------------------------------------------------------------------


def test_each_step_of_a_lock_is_a_row(api: Api) -> None:
    names = new_codes(2)
    code, other = names
    book = api.book(codes=names, lock_policy=books.LOCK_POLICY_REQUIRED)
    row_of = functools.partial(one_row, api, book.book_id)
    state = {"code": code, "user_id": "u", "state_before": "AVAILABLE", "state_after": "AVAILABLE"}

    taken, row, event = row_of(
        lambda request_id: api.lock(code, "u", request_id=request_id, metadata=struct(cart=1)),
        "LOCKED",
    )
    lock = {"lock_id": taken.lock.lock_id, "fence": str(taken.lock.fence)}
    expire_time = taken.lock.expire_time.ToJsonString()
    assert row == {**state, **lock, "expire_time": expire_time, "metadata": {"cart": 1}}
    assert event.event_id == taken.lock.lock_id

    def extend(request_id: str) -> redemptions.ExtendLockResponse:
        request = redemptions.ExtendLockRequest(
            lock_token=taken.lock_token, ttl=Duration(seconds=600), request_id=request_id
        )
        return api.redemptions.ExtendLock(request)

    extended, row, _ = row_of(extend, "LOCK_EXTENDED")
    assert row == {**state, **lock, "expire_time": extended.lock.expire_time.ToJsonString()}
    _, row, _ = row_of(
        lambda request_id: api.redemptions.UnlockCode(
            redemptions.UnlockCodeRequest(lock_token=extended.lock_token, request_id=request_id)
        ),
        "UNLOCKED",
    )
    assert row == state | lock

    used = api.lock(other, "v")
    _, row, _ = row_of(
        lambda request_id: api.redeem(
            other, "v", lock_token=used.lock_token, request_id=request_id
        ),
        "REDEEMED",
    )
    assert row == {
        "code": other,
        "user_id": "v",
        "state_before": "AVAILABLE",
        "state_after": "REDEEMED",
        "lock_id": used.lock.lock_id,
        "fence": str(used.lock.fence),
        "code_redemption_count": 1,
    }


# --- one row for what happened, none for what did not ---------------------------------------------


def test_what_was_refused_or_had_been_done_leaves_no_row(api: Api) -> None:
    code, other = new_codes(2)
    book = api.book(codes=[code, other])
    redeem = api.redeem_request(code, "u", order_id="o")
    redemption_id = api.redemptions.RedeemCode(redeem).redemption.redemption_id
    before = api.events(book_id=book.book_id)
    assert api.redemptions.RedeemCode(redeem).replayed
    for reason, call in (
        ("CODE_ALREADY_REDEEMED", lambda: api.redeem(code, "v")),
        ("REQUEST_ID_REUSED", lambda: api.redeem(code, "v", request_id=redeem.request_id)),
        ("CODE_ALREADY_REDEEMED", lambda: api.assign(code, "v")),
        ("ASSIGNMENT_NOT_FOUND", lambda: api.revoke(other, "v")),
        ("INVALID_STATE_TRANSITION", lambda: api.enable(code)),
        ("INVALID_STATE_TRANSITION", lambda: api.activate(book.book_id)),
        ("INVALID_STATE_TRANSITION", lambda: api.lock(other, "v")),
        ("REDEMPTION_NOT_FOUND", lambda: api.rollback(str(uuid4()))),
        ("CODE_SPACE_EXHAUSTED", lambda: _generate_too_many(api)),
    ):
        with refused(reason):
            call()
    for look in (
        lambda: api.validate(other, "v"),
        lambda: api.get_code(code),
        lambda: api.get_book(book.book_id),
        lambda: api.stats(book.book_id),
    ):
        look()
    items = [redemptions.RedeemItem(code=it, user_id="w") for it in (other, code)]
    request = redemptions.BatchRedeemCodesRequest(
        items=items, mode=redemptions.BATCH_MODE_ALL_OR_NOTHING
    )
    assert api.redemptions.BatchRedeemCodes(request).redeemed_count == 0
    assert api.events(book_id=book.book_id) == before
    api.rollback(redemption_id)
    with refused("ALREADY_ROLLED_BACK"):
        api.rollback(redemption_id)
    assert len(api.events(book_id=book.book_id)) == len(before) + 1


def _generate_too_many(api: Api) -> None:
    book = api.draft(code_format=books.CodeFormat(length=4, alphabet="AB"))
    list(api.codes.GenerateCodes(codes.GenerateCodesRequest(book_id=book.book_id, count=99)))


def test_the_user_agent_is_what_the_client_says_of_itself(server_address: str, api: Api) -> None:
    options = [("grpc.primary_user_agent", "shop/1.0"), ("grpc.use_local_subchannel_pool", 1)]
    book = books.CouponBook(
        business_id="b",
        name="n",
        discount=books.Discount(benefit=books.Benefit(description="A gift")),
    )
    with grpc.insecure_channel(server_address, options) as channel:
        client = CouponBookServiceStub(channel)
        request = books.CreateCouponBookRequest(coupon_book=book)
        made = client.CreateCouponBook(request).coupon_book
    (row,) = api.events(book_id=made.book_id)
    assert row.user_agent.startswith("shop/1.0 grpc-python/")


# --- locks that expire --------------------------------------------------------------------------


def test_an_expired_lock_is_a_row_that_the_service_writes_by_itself(
    api: Api, short_lock: redemptions.Lock
) -> None:
    expired = functools.partial(
        api.events, code=short_lock.code, types=[audit.AUDIT_EVENT_TYPE_LOCK_EXPIRED]
    )
    until(expired)
    (row,) = expired()
    assert row.event_time.ToDatetime() >= short_lock.expire_time.ToDatetime()
    assert row.caller
    assert (row.user_id, row.lock_id) == (short_lock.user_id, short_lock.lock_id)
    assert row.fence == short_lock.fence
    assert (row.state_before, row.state_after) == ("AVAILABLE", "AVAILABLE")
