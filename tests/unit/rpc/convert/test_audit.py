"""Requests and answers of AuditService."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from support.ledger_rows import ID, NOW, REDEEMED
from support.page_tokens import PAGES
from support.violations import bad_fields

from coupon_service.model import EventType
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert import audit
from coupon_service.rpc.convert.values import to_timestamp
from coupon_service.v1 import audit_service_pb2 as pb
from coupon_service.v1.money_pb2 import Money as MoneyMessage


def test_the_ledger_can_be_asked_for_everything() -> None:
    wanted, page = audit.read_list(
        pb.ListAuditEventsRequest(), RequestContext(business_id="acme"), PAGES
    )
    assert wanted.business_id == "acme"
    assert (wanted.book_id, wanted.code, wanted.types) == (None, "", ())
    assert page.size == 50


def test_the_ledger_is_filtered_by_what_is_given() -> None:
    wanted, _ = audit.read_list(
        pb.ListAuditEventsRequest(
            book_id=str(ID),
            code="ab-cd",
            user_id="u",
            order_id="o",
            types=map(pb.AuditEventType.ValueType, [16, 17, 16]),
            start_time=to_timestamp(NOW),
            end_time=to_timestamp(NOW + timedelta(days=1)),
        ),
        RequestContext(),
        PAGES,
    )
    assert (wanted.book_id, wanted.code, wanted.user_id, wanted.order_id) == (ID, "ABCD", "u", "o")
    assert wanted.types == (EventType.REDEEMED, EventType.ROLLED_BACK)
    assert (wanted.start_time, wanted.end_time) == (NOW, NOW + timedelta(days=1))


def test_bad_filters_are_all_named() -> None:
    request = pb.ListAuditEventsRequest(
        book_id="x",
        code="x" * 65,
        user_id=" ",
        order_id="x" * 129,
        types=map(pb.AuditEventType.ValueType, [0, 16, 99]),
        page_token="x",
    )
    request.start_time.nanos = -1
    request.end_time.seconds = 2**62
    assert bad_fields(lambda: audit.read_list(request, RequestContext(), PAGES)) == [
        "types[0]",
        "types[2]",
        "book_id",
        "code",
        "user_id",
        "order_id",
        "start_time",
        "end_time",
        "page_token",
    ]


def test_an_event_is_shown_as_the_ledger_has_it() -> None:
    expected = pb.AuditEvent(
        event_id=str(REDEEMED.event_id),
        type=pb.AUDIT_EVENT_TYPE_REDEEMED,
        event_time=to_timestamp(NOW),
        book_id=str(ID),
        code="ABCD",
        user_id="u",
        order_id="o",
        caller="shop",
        peer="ipv4:1.2.3.4:5",
        user_agent="test/1",
        request_id="r",
        state_before="ASSIGNED",
        state_after="REDEEMED",
        order_amount=MoneyMessage(amount_minor=1_000, currency_code="EUR"),
        discount=MoneyMessage(amount_minor=150, currency_code="EUR"),
        lock_id=str(ID),
        fence=9,
        code_redemption_count=2,
    )
    expected.metadata.update({"a": 1})
    assert audit.event_message(REDEEMED) == expected


def test_states_of_books_are_shown_as_such() -> None:
    event = replace(REDEEMED, type=EventType.BOOK_ACTIVATED, state_before=1, state_after=2)
    message = audit.event_message(event)
    assert (message.state_before, message.state_after) == ("DRAFT", "ACTIVE")
    created = replace(event, type=EventType.BOOK_CREATED, state_before=None, state_after=1)
    assert audit.event_message(created).state_before == ""
