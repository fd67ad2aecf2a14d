"""What codes say for themselves, between proto and model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from coupon_service.model import NO_TERMS, CodeTerms
from coupon_service.rpc.convert.discounts import discount_message, read_discount
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.convert.values import put_struct, put_time
from coupon_service.store.bulk.upload_rows import UploadRow
from coupon_service.v1 import coupon_code_service_pb2 as pb

LIMIT_MAX: Final = 10**9


def read_rows(messages: Sequence[pb.NewCode]) -> list[UploadRow]:
    """The rows of a chunk, each with what is wrong with it: a bad one stops none of the others."""
    return [_read_row(f"rows[{index}]", message) for index, message in enumerate(messages)]


def _read_row(path: str, message: pb.NewCode) -> UploadRow:
    fields = Fields().within(path)
    terms = None
    if message.HasField("terms"):
        terms = _read_terms(fields.within("terms"), message.terms)
    user_id = fields.identifier("user_id", message.user_id, optional=True)
    currency_code = message.currency_code
    if currency_code:
        fields.currency_code("currency_code", currency_code)
    sent = message.SerializeToString(deterministic=True).hex()
    return UploadRow(message.code, terms, user_id, currency_code, fields.violations, sent)


def _read_terms(fields: Fields, message: pb.CodeTerms) -> CodeTerms | None:
    """The terms; None when nothing is set in them."""
    terms = CodeTerms(
        max_redemptions=fields.whole("max_redemptions", message.max_redemptions, 0, LIMIT_MAX),
        start_time=fields.time("start_time", message.start_time)
        if message.HasField("start_time")
        else None,
        end_time=fields.time("end_time", message.end_time)
        if message.HasField("end_time")
        else None,
        discount=read_discount(fields, message.discount) if message.HasField("discount") else None,
        metadata=fields.metadata(message.metadata),
    )
    if terms.start_time and terms.end_time and terms.end_time <= terms.start_time:
        fields.refuse("end_time", "expected a time after start_time")
    return None if terms == NO_TERMS else terms


def put_terms(message: pb.CodeTerms, terms: CodeTerms) -> None:
    """Makes the message that of the terms."""
    message.max_redemptions = terms.max_redemptions
    if terms.start_time is not None:
        put_time(message.start_time, terms.start_time)
    if terms.end_time is not None:
        put_time(message.end_time, terms.end_time)
    if terms.discount is not None:
        message.discount.CopyFrom(discount_message(terms.discount))
    if terms.metadata is not None:
        put_struct(message.metadata, terms.metadata)
