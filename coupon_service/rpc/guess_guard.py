"""What a guess is in the messages of the contract: whose codes are looked up, and what a miss is.

Around the servicers, so that what is counted is what the client is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

import grpc

from coupon_service.errors import (
    CodeChecksumInvalid,
    CodeNotFound,
    CouponServiceError,
    InvalidArgument,
)
from coupon_service.model.normalization import canonical_id, is_code
from coupon_service.ratelimit.code_guessing import GuessGuard
from coupon_service.rpc.context import RequestContext, current
from coupon_service.rpc.methods import LookUp
from coupon_service.rpc.status import TABLE, item_error
from coupon_service.v1 import redemption_service_pb2 as pb

Behavior = Callable[[Any, Any], Awaitable[Any]]

MISSES: Final = (CodeNotFound, CodeChecksumInvalid)
MISS_REASONS: Final = tuple(TABLE[cls].reason for cls in MISSES)


def guarded(
    look_up: LookUp, handler: grpc.RpcMethodHandler[Any, Any], guesses: GuessGuard | None
) -> grpc.RpcMethodHandler[Any, Any]:
    """The handler, which counts misses and refuses who has had too many."""
    if guesses is None or look_up is LookUp.NONE:
        return handler
    behavior: Any = handler.unary_unary
    return grpc.unary_unary_rpc_method_handler(
        AROUND[look_up](behavior, guesses),
        handler.request_deserializer,
        handler.response_serializer,
    )


def _one(behavior: Behavior, guesses: GuessGuard) -> Behavior:
    async def look_up(request: Any, context: Any) -> Any:
        rpc = current()
        user_id = canonical_id(getattr(request, "user_id", ""))
        business_id = _business_of(request, rpc)
        if refusal := guesses.refusal(rpc, user_id, business_id):
            raise refusal
        with guesses.look_up(rpc):
            try:
                response = await behavior(request, context)
            except MISSES:
                if is_code(request.code) and (
                    refusal := await guesses.missed(rpc, {user_id: 1}, business_id)
                ):
                    raise refusal from None
                raise
            if (
                _is_missed(response)
                and is_code(request.code)
                and (refusal := await guesses.missed(rpc, {user_id: 1}, business_id))
            ):
                raise refusal
            return response

    return look_up


def _several(behavior: Behavior, guesses: GuessGuard) -> Behavior:
    async def look_up(request: pb.QualifyCouponsRequest, context: Any) -> pb.QualifyCouponsResponse:
        rpc = current()
        user_id = canonical_id(request.user_id)
        business_id = _business_of(request, rpc)
        if request.codes and (refusal := guesses.refusal(rpc, user_id, business_id)):
            raise refusal
        with guesses.look_up(rpc, len(request.codes)):
            response = await behavior(request, context)
            misses = sum(
                is_code(coupon.code) and any(it.reason in MISS_REASONS for it in coupon.problems)
                for coupon in response.coupons
            )
            if misses and (refusal := await guesses.missed(rpc, {user_id: misses}, business_id)):
                raise refusal
            return response

    return look_up


def _is_missed(response: Any) -> bool:
    """Whether a dry run says that there is no such code."""
    return isinstance(response, pb.ValidateCodeResponse) and any(
        problem.reason in MISS_REASONS for problem in response.problems
    )


def _batch(behavior: Behavior, guesses: GuessGuard) -> Behavior:
    async def look_up(
        request: pb.BatchRedeemCodesRequest, context: Any
    ) -> pb.BatchRedeemCodesResponse:
        rpc = current()
        businesses = [_business_of(it, rpc, request.business_id) for it in request.items]
        refusals = [
            guesses.refusal(rpc, canonical_id(it.user_id), business_id)
            for it, business_id in zip(request.items, businesses, strict=True)
        ]
        first = next(filter(None, refusals), None)
        if first is None:
            wanted = request
        elif all(refusals) or request.mode == pb.BATCH_MODE_ALL_OR_NOTHING:
            raise first
        else:
            wanted = _without(request, refusals)
        with guesses.look_up(rpc):
            try:
                response = await behavior(wanted, context)
            except InvalidArgument:
                if first is not None:  # as bad with all items, which the client counts its own by
                    await behavior(request, context)
                raise
            for business_id, misses in _misses(wanted, response, rpc).items():
                await guesses.missed(rpc, misses, business_id)
        return response if first is None else _with(response, refusals)

    return look_up


def _without(
    request: pb.BatchRedeemCodesRequest, refusals: Sequence[CouponServiceError | None]
) -> pb.BatchRedeemCodesRequest:
    """The request without the items that are refused."""
    return pb.BatchRedeemCodesRequest(
        items=[it for it, refusal in zip(request.items, refusals, strict=True) if refusal is None],
        mode=request.mode,
        request_id=request.request_id,
        business_id=request.business_id,
    )


def _with(
    response: pb.BatchRedeemCodesResponse, refusals: Sequence[CouponServiceError | None]
) -> pb.BatchRedeemCodesResponse:
    """The response, with the refused items where the request has them."""
    rest = iter(response.results)
    return pb.BatchRedeemCodesResponse(
        results=[
            next(rest) if refusal is None else pb.BatchRedeemResult(error=item_error(refusal))
            for refusal in refusals
        ],
        redeemed_count=response.redeemed_count,
    )


def _misses(
    request: pb.BatchRedeemCodesRequest,
    response: pb.BatchRedeemCodesResponse,
    rpc: RequestContext,
) -> Mapping[str, Mapping[str, int]]:
    """Unknown codes by business and user. Errors that an item only has from another one do not
    count, nor does what cannot be a code."""
    misses: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item, result in zip(request.items, response.results, strict=True):
        missed = result.error.reason in MISS_REASONS and "item" not in result.error.metadata
        if missed and is_code(item.code):
            business_id = _business_of(item, rpc, request.business_id)
            misses[business_id][canonical_id(item.user_id)] += 1
    return misses


def _business_of(request: Any, rpc: RequestContext, named_before: str = "") -> str:
    """Whose users the user of a request is one of; empty where only its book tells."""
    named = request.business_id or named_before
    if rpc.business_id or named:
        return rpc.business_id or canonical_id(named)
    return "" if getattr(request, "book_id", "") else rpc.default_business


AROUND: Final = {LookUp.CODE: _one, LookUp.CODES: _several, LookUp.ITEMS: _batch}
"""What goes around a method that looks up codes."""
