"""Redemptions between proto and model: the hot path."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from coupon_service.checkout import Validation
from coupon_service.errors import CouponServiceError, PermissionDenied
from coupon_service.model import (
    Adjust,
    Attempt,
    Call,
    Done,
    Event,
    EventType,
    Money,
    Outcome,
    Redeem,
    Rollback,
    done_of,
    earlier_attempts,
    event_id,
    fingerprint,
    rollback_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.normalization import NO_CODE
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.business import in_business
from coupon_service.rpc.convert.fields import Fields, Page
from coupon_service.rpc.convert.terms import put_terms
from coupon_service.rpc.convert.values import put_money, put_struct, put_time
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.status import item_error
from coupon_service.store.queries.reads import AuditFilter
from coupon_service.v1 import redemption_service_pb2 as pb

ITEMS_MAX: Final = 1_000

REDEMPTION_FILTERS: Final = "user_id, book_id, code, order_id, business_id, start_time and end_time"

# --- requests -----------------------------------------------------------------------------------


def read_redeem(request: pb.RedeemCodeRequest, rpc: RequestContext) -> Redeem:
    """The command, without what the lock token says that may be with it."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    command = _redeem(fields, request, call, rpc)
    fields.check()
    return command


def read_validate(request: pb.ValidateCodeRequest, rpc: RequestContext) -> Redeem:
    """The command that is only tried, without what the lock token says that may be with it."""
    fields = Fields()
    command = _redeem(fields, request, rpc.call(request_id=""), rpc)
    fields.check()
    return command


def read_batch(
    request: pb.BatchRedeemCodesRequest, rpc: RequestContext
) -> tuple[list[tuple[Redeem, str]], bool]:
    """Commands with their lock tokens, in the order of the request; whether all or nothing."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    if request.mode not in pb.BatchMode.values():
        fields.refuse("mode", "expected BEST_EFFORT or ALL_OR_NOTHING")
    if not 1 <= len(request.items) <= ITEMS_MAX:
        fields.refuse("items", f"expected 1 to {ITEMS_MAX:,} items")
        fields.check()
    commands: list[tuple[Redeem, str]] = []
    seen: set[tuple[str, str, str]] = set()
    for index, item in enumerate(request.items):
        inside = fields.within(f"items[{index}]")
        own = item.request_id
        attempt_call = replace(call, request_id=inside.request_id(own)) if own else call
        command = _redeem(inside, item, attempt_call, rpc, request.business_id)
        attempt = (command.call.request_id, command.call.business_id, command.code)
        if command.code != NO_CODE and attempt in seen:
            inside.refuse("code", "expected every code once, or items with their own request_id")
        seen.add(attempt)
        commands.append((command, item.lock_token))
    fields.check()
    return commands, request.mode == pb.BATCH_MODE_ALL_OR_NOTHING


def read_rollback(
    request: pb.RollbackRedemptionRequest, rpc: RequestContext
) -> tuple[UUID, Call, str | None]:
    """Which redemption is to be undone, by whom, with which metadata."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    redemption_id = fields.uuid("redemption_id", request.redemption_id)
    metadata = fields.metadata(request.metadata)
    fields.check()
    return redemption_id, call, metadata


def rollback_command(redemption: Event, call: Call, metadata: str | None) -> Rollback:
    """The command to undo the redemption; its id is the same whoever asks how often."""
    return Rollback(
        call=call,
        code=redemption.code or "",
        event_id=rollback_id(redemption.event_id),
        fingerprint=fingerprint(metadata),
        user_id=redemption.user_id or "",
        redemption=redemption,
        metadata=metadata,
    )


@dataclass(frozen=True, slots=True)
class AdjustmentWish:
    """What the order of a redemption is to come to. `adjustments`: see Adjust."""

    redemption_id: UUID
    order_amount: Money
    adjustments: int | None
    call: Call
    metadata: str | None

    def command(self, redemption: Event) -> Adjust:
        """The command for this redemption, which has the id."""
        bucket = bucket_of(redemption.code or "")
        order, call = self.order_amount, self.call

        def attempt(caller: str) -> Attempt:
            return (
                event_id(bucket, EventType.ADJUSTED, caller, call.request_id, self.redemption_id),
                fingerprint(
                    order.amount_minor, order.currency_code, self.adjustments, self.metadata
                ),
            )

        named, parameters = attempt(call.caller)
        return Adjust(
            call=call,
            code=redemption.code or "",
            event_id=named,
            fingerprint=parameters,
            user_id=redemption.user_id or "",
            redemption=redemption,
            order_amount=order,
            adjustments=self.adjustments,
            metadata=self.metadata,
        )


def read_adjust(request: pb.AdjustRedemptionRequest, rpc: RequestContext) -> AdjustmentWish:
    """Which redemption is to be adjusted, by whom, to which amount."""
    fields = Fields()
    call = rpc.call(fields.request_id(request.request_id))
    redemption_id = fields.uuid("redemption_id", request.redemption_id)
    order_amount = Money(0, "")
    if request.HasField("order_amount"):
        order_amount = fields.money("order_amount", request.order_amount)
    else:
        fields.refuse("order_amount", "expected what the order comes to now")
    metadata = fields.metadata(request.metadata)
    fields.check()
    adjustments = _adjustments(request.etag)
    return AdjustmentWish(redemption_id, order_amount, adjustments, call, metadata)


def _adjustments(etag: str) -> int | None:
    """The adjustments an etag stands for; None for an empty one, no redemption's for one that is
    not ours."""
    if not etag:
        return None
    number = re.fullmatch(r"a(0|[1-9][0-9]{0,8})", etag)
    return int(number[1]) if number else -1


def read_redemption_id(request: pb.GetRedemptionRequest) -> UUID:
    """Which redemption."""
    fields = Fields()
    redemption_id = fields.uuid("redemption_id", request.redemption_id)
    fields.check()
    return redemption_id


def read_list(
    request: pb.ListRedemptionsRequest, rpc: RequestContext, tokens: PageTokens
) -> tuple[AuditFilter, Page]:
    """Which redemptions, and which page of them. Raises PermissionDenied."""
    fields = Fields()
    wanted = AuditFilter(
        business_id=fields.identifier("business_id", request.business_id, optional=True),
        book_id=fields.optional_uuid("book_id", request.book_id),
        code=fields.code("code", request.code) if request.code else "",
        user_id=rpc.user(fields.identifier("user_id", request.user_id, optional=True)),
        order_id=fields.identifier("order_id", request.order_id, optional=True),
        types=(EventType.REDEEMED,),
        start_time=fields.optional_time(request, "start_time"),
        end_time=fields.optional_time(request, "end_time"),
        own=rpc.end_user,
    )
    if wanted == AuditFilter(types=wanted.types):
        fields.refuse("user_id", f"expected at least one of {REDEMPTION_FILTERS}")
    page = fields.page(request, tokens)
    fields.check()
    if rpc.business_id and wanted.business_id not in ("", rpc.business_id):
        raise PermissionDenied("The caller may only list redemptions of its own business.")
    return replace(wanted, business_id=wanted.business_id or rpc.business_id), page


def _redeem(
    fields: Fields,
    item: pb.RedeemCodeRequest | pb.RedeemItem | pb.ValidateCodeRequest,
    call: Call,
    rpc: RequestContext,
    business_id: str = "",
) -> Redeem:
    code = fields.code("code", item.code)
    book_id = fields.optional_uuid("book_id", item.book_id)
    sent_user_id, sent_order_id = item.user_id, item.order_id
    user_id = rpc.user(fields.identifier("user_id", sent_user_id))
    order_id = fields.identifier("order_id", sent_order_id, optional=True)
    order: Money | None = None
    if item.HasField("order_amount"):
        order = fields.money("order_amount", item.order_amount)
    metadata = None
    if not isinstance(item, pb.ValidateCodeRequest) and item.HasField("metadata"):
        metadata = fields.metadata(item.metadata)
    call = in_business(call, fields, item.business_id or business_id, book_id, rpc)
    amount = (order.amount_minor, order.currency_code) if order else ("", "")

    def attempt(caller: str, user_id: str, order_id: str) -> Attempt:
        return (
            event_id(bucket_of(code), EventType.REDEEMED, caller, call.request_id, code),
            fingerprint(user_id, book_id, order_id, *amount, metadata),
        )

    ids = call.caller, user_id, order_id
    sent = call.caller, sent_user_id or user_id, sent_order_id
    named, parameters = attempt(*ids)
    return Redeem(
        call=call,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, ids, sent),
        user_id=user_id,
        book_id=book_id,
        order_id=order_id,
        order_amount=order,
        metadata=metadata,
    )


# --- answers ------------------------------------------------------------------------------------


def redemption_message(event: Event, rollback: Event | None = None) -> pb.Redemption:
    """A redemption as it is, and the ledger row of its roll-back, which has the amounts of then."""
    message = pb.Redemption()
    if rollback is not None:
        amounts = rollback.order_amount_minor, rollback.discount_minor
        event = replace(event, order_amount_minor=amounts[0], discount_minor=amounts[1])
    _put_redemption(message, event)
    if rollback is not None:
        message.state = pb.REDEMPTION_STATE_ROLLED_BACK
        put_time(message.rollback_time, rollback.event_time)
    return message


def _put_redemption(message: pb.Redemption, event: Event) -> None:
    message.redemption_id = str(event.event_id)
    message.code = event.code or ""
    message.book_id = str(event.book_id)
    message.user_id = event.user_id or ""
    message.order_id = event.order_id or ""
    message.state = pb.REDEMPTION_STATE_SUCCEEDED
    if event.order_amount_minor is not None:
        put_money(message.order_amount, event.order_amount_minor, event.currency_code)
    if event.discount_minor is not None:
        put_money(message.discount, event.discount_minor, event.currency_code)
    message.benefit = event.benefit or ""
    if event.lock_id is not None:
        message.lock_id = str(event.lock_id)
    put_time(message.redeem_time, event.event_time)
    if event.metadata is not None:
        put_struct(message.metadata, event.metadata)
    message.etag = f"a{event.adjustments}" if event.adjustments else "a0"


def counts_message(event: Event) -> pb.RedemptionCounts:
    """The counts right after a redemption or roll-back."""
    counts = pb.RedemptionCounts()
    _put_counts_after(counts, event)
    return counts


def _put_counts_after(counts: pb.RedemptionCounts, event: Event) -> None:
    _put_counts(
        counts,
        event.code_redemptions or 0,
        event.code_redemption_limit or 0,
        event.user_code_redemptions or 0,
    )


def _put_counts(counts: pb.RedemptionCounts, redemptions: int, limit: int, by_user: int) -> None:
    counts.code_redemption_count = redemptions
    counts.code_max_redemptions = limit
    counts.used_up = 0 < limit <= redemptions
    counts.user_code_redemption_count = by_user


def redeemed_message(done: Done) -> pb.RedeemCodeResponse:
    """A redemption, and the counts right after it."""
    response = pb.RedeemCodeResponse()
    _put_redeemed(response, done)
    return response


def _put_redeemed(response: pb.RedeemCodeResponse | pb.BatchRedeemResult, done: Done) -> None:
    _put_redemption(response.redemption, done.event)
    _put_counts_after(response.counts, done.event)
    response.replayed = done.replayed


def batch_message(outcomes: Iterable[Outcome]) -> pb.BatchRedeemCodesResponse:
    """What became of each item."""
    response = pb.BatchRedeemCodesResponse()
    for outcome in outcomes:
        result = response.results.add()
        if isinstance(outcome, CouponServiceError):
            result.error.CopyFrom(item_error(outcome))
        else:
            _put_redeemed(result, done_of(outcome))
            response.redeemed_count += 1
    return response


def validation_message(validation: Validation) -> pb.ValidateCodeResponse:
    """What a redemption would come to."""
    response = pb.ValidateCodeResponse(
        valid=not validation.problems, problems=map(item_error, validation.problems)
    )
    if validation.book is None:
        return response
    discount = validation.discount
    response.book_id = str(validation.book.book_id)
    response.benefit = validation.benefit
    if discount is not None:
        put_money(response.discount, discount.amount_minor, discount.currency_code)
    put_counts_now(response.counts, validation)
    if validation.code is not None and validation.code.terms is not None:
        put_terms(response.terms, validation.code.terms)
    return response


def put_counts_now(counts: pb.RedemptionCounts, validation: Validation) -> None:
    """The counts of a code that was validated."""
    book, code, assignment = validation.book, validation.code, validation.assignment
    if book is not None and code is not None:
        _put_counts(
            counts,
            code.redemptions,
            book.limits.max_redemptions_per_code,
            assignment.redemptions if assignment else 0,
        )
