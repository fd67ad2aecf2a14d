"""Refused attempts between proto and model."""

from __future__ import annotations

from coupon_service.errors import error_class
from coupon_service.model.refused_attempts import Reason, RefusedAttempt
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.business import listed_business
from coupon_service.rpc.convert.fields import Fields, Page
from coupon_service.rpc.convert.values import put_money, put_time
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.refused_attempts import RefusedCodes
from coupon_service.rpc.status import item_error
from coupon_service.store.refusals import RefusalFilter
from coupon_service.v1 import redemption_service_pb2 as pb
from coupon_service.v1.error_reason_pb2 import ItemError


def read_list(
    request: pb.ListRefusalsRequest, rpc: RequestContext, tokens: PageTokens, codes: RefusedCodes
) -> tuple[RefusalFilter, Page]:
    """Which refused attempts, and which page of them. Raises PermissionDenied."""
    fields = Fields()
    code = fields.code("code", request.code) if request.code else ""
    wanted = RefusalFilter(
        business_id=listed_business(fields, request.business_id, rpc),
        book_id=fields.optional_uuid("book_id", request.book_id),
        codes=codes.spellings(code) if code else (),
        user_id=fields.identifier("user_id", request.user_id, optional=True),
        order_id=fields.identifier("order_id", request.order_id, optional=True),
        start_time=fields.optional_time(request, "start_time"),
        end_time=fields.optional_time(request, "end_time"),
    )
    page = fields.page(request, tokens)
    fields.check()
    return wanted, page


def refusal_message(refused: RefusedAttempt) -> pb.Refusal:
    """A refused attempt as a client sees it."""
    mask = RefusedCodes.mask_of(refused.code)
    message = pb.Refusal(
        refusal_id=str(refused.refusal_id),
        kind=pb.AttemptKind.ValueType(refused.kind),
        told=map(_item_error, refused.told),
        untold=map(_item_error, refused.untold),
        code="" if mask else refused.code,
        code_mask=mask,
        book_id=str(refused.book_id or ""),
        business_id=refused.business_id,
        user_id=refused.user_id,
        order_id=refused.order_id,
        caller=refused.caller,
        request_id=refused.request_id,
    )
    put_time(message.refuse_time, refused.refuse_time)
    if (amount := refused.order_amount) is not None:
        put_money(message.order_amount, amount.amount_minor, amount.currency_code)
    return message


def _item_error(reason: Reason) -> ItemError:
    name, metadata = reason
    return item_error(error_class(name)("", **metadata))
