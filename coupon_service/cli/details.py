"""A code with all that is known of it, as a record of CSV that can be imported again."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from coupon_service.v1.coupon_code_service_pb2 import CodeTerms, CouponCode, CouponCodeState

DETAILS: Final = (
    "code",
    "user_id",
    "max_redemptions",
    "start_time",
    "end_time",
    "percent_off",
    "max_discount_minor",
    "amount_off_minor",
    "benefit",
    "discount",
    "metadata",
    "state",
    "redemption_count",
    "redemption_limit",
    "assignment_count",
    "assign_time",
    "assignment_expire_time",
    "redemption_id",
    "redeem_time",
    "redeem_user_id",
    "order_id",
    "redeem_discount_minor",
    "redeem_currency_code",
)
"""Those up to metadata are what an import takes: empty where the code says nothing for itself."""


def detail_cells(code: CouponCode) -> Sequence[object]:
    """The cells of a code, in the order of DETAILS."""
    details = code.details
    return (
        code.display_code,
        details.user_id,
        *_terms(code.terms),
        CouponCodeState.Name(code.state).removeprefix("COUPON_CODE_STATE_"),
        code.redemption_count,
        code.max_redemptions,
        code.assignment_count,
        _time(details.assign_time),
        _time(details.assignment_expire_time),
        details.redemption_id,
        _time(details.redeem_time),
        details.redeem_user_id,
        details.order_id,
        details.discount.amount_minor if details.HasField("discount") else "",
        details.discount.currency_code,
    )


def _terms(terms: CodeTerms) -> Sequence[object]:
    discount = terms.discount
    percent = discount.percent_off
    return (
        terms.max_redemptions or "",
        _time(terms.start_time),
        _time(terms.end_time),
        f"{Decimal(percent.basis_points) / 100:f}" if percent.basis_points else "",
        percent.max_discount_minor or "",
        discount.amount_off.amount_minor or "",
        discount.benefit.description,
        _json(discount) if discount.HasField("tiers") else "",
        _json(terms.metadata) if terms.HasField("metadata") else "",
    )


def _json(message: Message) -> str:
    return json_format.MessageToJson(message, indent=None, preserving_proto_field_name=True)


def _time(moment: Timestamp) -> str:
    """In RFC 3339; empty where there is none."""
    return moment.ToJsonString() if moment.seconds else ""
