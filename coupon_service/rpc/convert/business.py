"""The business of a call on a code: of its token, its request, its book, or the default."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID

from coupon_service.model import Call
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.fields import Fields


def business_of(fields: Fields, named: str, book_id: UUID | None, rpc: RequestContext) -> str:
    """The business whose code is meant; empty: that of the book. Raises PermissionDenied."""
    if named:
        named = fields.identifier("business_id", named)
    return rpc.business_of(named, by_book=book_id is not None)


def in_business(
    call: Call, fields: Fields, named: str, book_id: UUID | None, rpc: RequestContext
) -> Call:
    """The call, in the business whose code is meant. Raises PermissionDenied."""
    business_id = business_of(fields, named, book_id, rpc)
    return call if business_id == call.business_id else replace(call, business_id=business_id)


def listed_business(fields: Fields, named: str, rpc: RequestContext) -> str:
    """The business whose rows are listed; empty: any. Raises PermissionDenied."""
    if named:
        named = fields.identifier("business_id", named)
    return rpc.business_of(named, by_book=True)
