"""Batches whose items are of several businesses: a part for each shard, put together again."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from coupon_service.errors import BusinessRequired, CouponServiceError, SeveralBusinesses
from coupon_service.rpc.context import RequestContext
from coupon_service.rpc.convert.redemptions import read_batch
from coupon_service.rpc.shards.places import WHAT_IT_NEEDS, Places
from coupon_service.rpc.status import item_error
from coupon_service.v1 import redemption_service_pb2 as pb

Redeem = Callable[[pb.BatchRedeemCodesRequest, Any], Awaitable[pb.BatchRedeemCodesResponse]]


class PartedBatch:
    """BatchRedeemCodes of several shards, by the method of each of them.

    A business is what is atomic: ALL_OR_NOTHING for several is refused, wherever these are.
    """

    def __init__(self, places: Places, shards: Sequence[Redeem]) -> None:
        self._places = places
        self._shards = shards

    async def redeem(
        self, request: pb.BatchRedeemCodesRequest, context: Any, rpc: RequestContext
    ) -> pb.BatchRedeemCodesResponse:
        """Raises SeveralBusinesses, BusinessRequired, and what the methods raise when all parts
        failed alike."""
        scopes = [self._places.scope(it, rpc, request.business_id) for it in request.items]
        if request.mode == pb.BATCH_MODE_ALL_OR_NOTHING:
            if len(set(scopes)) > 1:
                raise SeveralBusinesses
            if None in scopes:
                raise BusinessRequired(WHAT_IT_NEEDS)
        shards = [None if it is None else self._places.of_scope(it) for it in scopes]
        of_all = set(shards) or {0}
        if len(of_all) == 1 and (shard := of_all.pop()) is not None:
            return await self._shards[shard](request, context)
        read_batch(request, rpc)  # what is bad is told by its place in the whole
        return await self._redeem_parts(request, context, shards)

    async def _redeem_parts(
        self, request: pb.BatchRedeemCodesRequest, context: Any, shards: Sequence[int | None]
    ) -> pb.BatchRedeemCodesResponse:
        places: defaultdict[int, list[int]] = defaultdict(list)
        for index, shard in enumerate(shards):
            if shard is not None:
                places[shard].append(index)
        answers = await asyncio.gather(
            *(
                self._shards[shard](_part(request, indexes), context)
                for shard, indexes in places.items()
            ),
            return_exceptions=True,
        )
        no_business = pb.BatchRedeemResult(error=item_error(BusinessRequired(WHAT_IT_NEEDS)))
        results = dict.fromkeys(range(len(shards)), no_business)
        results |= _results(places, answers)
        return pb.BatchRedeemCodesResponse(
            results=results.values(),
            redeemed_count=sum(it.HasField("redemption") for it in results.values()),
        )


def _part(request: pb.BatchRedeemCodesRequest, indexes: Sequence[int]) -> Any:
    return pb.BatchRedeemCodesRequest(
        items=[request.items[it] for it in indexes],
        mode=request.mode,
        request_id=request.request_id,
        business_id=request.business_id,
    )


def _results(
    places: Mapping[int, Sequence[int]],
    answers: Sequence[pb.BatchRedeemCodesResponse | BaseException],
) -> dict[int, pb.BatchRedeemResult]:
    """The result of each item, by its place in the whole: that of a part that failed is its error.
    Raises it where all parts failed alike."""
    failed_alike = len({type(it) for it in answers}) == 1
    results: dict[int, pb.BatchRedeemResult] = {}
    for indexes, answer in zip(places.values(), answers, strict=True):
        if not isinstance(answer, BaseException):
            results |= dict(zip(indexes, answer.results, strict=True))
        elif failed_alike or not isinstance(answer, CouponServiceError):
            raise answer
        else:
            failed = pb.BatchRedeemResult(error=item_error(answer))
            results |= dict.fromkeys(indexes, failed)
    return results
