"""Which coupons fit, between proto and model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from coupon_service.checkout import Validation
from coupon_service.model import Assignment, Book, Code, Redeem
from coupon_service.model.normalization import NO_CODE
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.fields import NO_ID, Fields
from coupon_service.rpc.convert.redemptions import put_counts_now
from coupon_service.rpc.convert.values import put_money, put_time
from coupon_service.rpc.status import item_error
from coupon_service.rules import own_end
from coupon_service.v1 import redemption_service_pb2 as pb

CODES_MAX: Final = 20
COUPONS_MAX: Final = 200

NEVER: Final = datetime.max.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Qualification:
    """Which coupons are tried: those that the user has, and named codes, by what was typed.

    `attempt`: what is tried with each of them. Its call has the business of the coupons, if any.
    """

    attempt: Redeem
    named: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Trial:
    """A coupon that is tried. `ends`: an assigned one, None for never. `typed`: how it was named,
    if it was."""

    command: Redeem
    shown: str
    assigned: bool = False
    ends: datetime | None = None
    typed: str = ""


def read_qualify(request: pb.QualifyCouponsRequest, rpc: RequestContext) -> Qualification:
    """What is to be tried. Raises PermissionDenied."""
    fields = Fields()
    user_id = rpc.user(fields.identifier("user_id", request.user_id))
    business_id = fields.identifier("business_id", request.business_id, optional=True)
    if len(request.codes) > CODES_MAX:
        fields.refuse("codes", f"expected at most {CODES_MAX} codes")
        fields.check()
    named = {typed: fields.code(f"codes[{at}]", typed) for at, typed in enumerate(request.codes)}
    order = None
    if request.HasField("order_amount"):
        order = fields.money("order_amount", request.order_amount)
    order_id = fields.identifier("order_id", request.order_id, optional=True)
    fields.check()
    business_id = rpc.business_of(business_id, by_book=False)
    attempt = Redeem(
        call=replace(rpc.call(request_id=""), business_id=business_id),
        code=NO_CODE,
        event_id=NO_ID,
        fingerprint=0,
        user_id=user_id,
        order_id=order_id,
        order_amount=order,
    )
    return Qualification(attempt, named)


def trials(wanted: Qualification, coupons: Sequence[tuple[Assignment, Code, Book]]) -> list[Trial]:
    """One for each coupon of the user, and for each named code that is none of these."""

    def attempt(code: str, book_id: UUID | None = None) -> Redeem:
        return replace(wanted.attempt, code=code, book_id=book_id)

    own = {code.code for _, code, _ in coupons}
    named: dict[str, str] = {}
    for typed, code in wanted.named.items():
        if code != NO_CODE:
            named.setdefault(code, typed)
    no_codes = [typed for typed, code in wanted.named.items() if code == NO_CODE]
    return [
        *(
            Trial(
                attempt(code.code, book.book_id),
                shown=code.spelling or book.code_format.display(code.code),
                assigned=True,
                ends=_first(assignment.expire_time, own_end(code), book.end_time),
                typed=named.get(code.code, ""),
            )
            for assignment, code, book in coupons
        ),
        *(Trial(attempt(code), typed) for code, typed in named.items() if code not in own),
        *(Trial(attempt(NO_CODE), typed) for typed in no_codes),
    ]


def _first(*ends: datetime | None) -> datetime | None:
    return min(filter(None, ends), default=None)


def qualified_message(
    tried: Iterable[Trial], validations: Iterable[Validation], *, truncated: bool
) -> pb.QualifyCouponsResponse:
    """What became of each, the best first. A coupon that its end user cannot see is left out, or,
    when it was named, is as one that does not exist."""
    found = [
        (trial, validation)
        if validation.book is not None
        else (Trial(trial.command, trial.typed or trial.shown), validation)
        for trial, validation in zip(tried, validations, strict=True)
        if validation.book is not None or trial.typed or not trial.assigned
    ]
    found.sort(key=lambda it: _rank(*it))
    return pb.QualifyCouponsResponse(
        coupons=(_coupon_message(*it) for it in found), truncated=truncated
    )


def _rank(trial: Trial, validation: Validation) -> tuple[bool, int, datetime, str]:
    discount = validation.discount.amount_minor if validation.discount is not None else 0
    return bool(validation.problems), -discount, _end(trial, validation) or NEVER, trial.shown


def _end(trial: Trial, validation: Validation) -> datetime | None:
    if trial.ends or validation.book is None or validation.code is None:
        return trial.ends
    return _first(own_end(validation.code), validation.book.end_time)


def _coupon_message(trial: Trial, validation: Validation) -> pb.QualifiedCoupon:
    coupon = pb.QualifiedCoupon(
        code=trial.shown if trial.command.code == NO_CODE else trial.command.code,
        display_code=trial.shown,
        redeemable=not validation.problems,
        problems=map(item_error, validation.problems),
        benefit=validation.benefit,
        assigned=trial.assigned,
    )
    if validation.book is not None:
        coupon.book_id = str(validation.book.book_id)
        put_counts_now(coupon.counts, validation)
    if validation.discount is not None:
        put_money(
            coupon.discount, validation.discount.amount_minor, validation.discount.currency_code
        )
    end = _end(trial, validation)
    if end is not None:
        put_time(coupon.end_time, end)
    return coupon
