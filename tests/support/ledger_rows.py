"""A redemption as a ledger row."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

from coupon_service.model import CodeState, Event, EventType, event_id
from coupon_service.model.codes import bucket_of

NOW = datetime(2026, 5, 1, 12, 0, 0, 123_456, tzinfo=UTC)
ID = UUID("0f8fad5b-d9cb-869f-a165-70867728950e")
REDEEMED = Event(
    event_id=event_id(bucket_of("ABCD"), EventType.REDEEMED, "shop", "r", "ABCD"),
    type=EventType.REDEEMED,
    event_time=NOW,
    book_id=ID,
    code="ABCD",
    user_id="u",
    order_id="o",
    caller="shop",
    peer="ipv4:1.2.3.4:5",
    user_agent="test/1",
    request_id="r",
    fingerprint=0,
    state_before=CodeState.ASSIGNED,
    state_after=CodeState.REDEEMED,
    order_amount_minor=1_000,
    discount_minor=150,
    currency_code="EUR",
    lock_id=ID,
    fence=9,
    code_redemptions=2,
    code_redemption_limit=2,
    user_code_redemptions=1,
    metadata='{"a": 1}',
)
