"""Servicers that stand for those of all shards: each method goes to the shard that its request is
for, or to all of them.

`ROUTES` says which, for every method. A method without a row cannot be served with several shards.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from types import SimpleNamespace
from typing import Any, Final

from coupon_service.rpc.context import RequestContext, current
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.shards import erasures, oldest_first, proofs, watches
from coupon_service.rpc.shards.merged_lists import (
    BOOKS,
    EVENTS,
    REDEMPTIONS,
    REFUSALS,
    USER_COUPONS,
    MergedList,
)
from coupon_service.rpc.shards.parted_batches import PartedBatch
from coupon_service.rpc.shards.places import FIRST, Places

Method = Callable[[Any, Any], Any]
"""A method of a servicer: it takes a request, or the requests of a stream, and a context."""

Route = Callable[["Router", Sequence[Method]], Method]
"""Makes the method that stands for those of all shards."""


class Router:
    """Makes the servicers that stand for those of all shards."""

    def __init__(self, places: Places, page_tokens: PageTokens) -> None:
        self.places = places
        self.page_tokens = page_tokens

    def servicer(self, service: str, servicers: Sequence[object]) -> Any:
        """The servicer of a service, such as AuditService, by that of each shard."""
        methods = SimpleNamespace()
        for name, route in ROUTES.items():
            of_service, _, method = name.partition("/")
            if of_service == service:
                setattr(methods, method, route(self, [getattr(it, method) for it in servicers]))
        return methods


# --- routes -------------------------------------------------------------------------------------


def _first(_: Router, methods: Sequence[Method]) -> Method:
    """Any shard would answer alike."""
    return methods[FIRST]


def _to(place: Callable[[Places, Any, RequestContext], int]) -> Route:
    """To the shard that the request leads to."""

    def route(router: Router, methods: Sequence[Method]) -> Method:
        def call(request: Any, context: Any) -> Any:
            return methods[place(router.places, request, current())](request, context)

        return call

    return route


def _upload(router: Router, methods: Sequence[Method]) -> Method:
    """To the shard that the first message of the stream leads to."""

    async def call(requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for header in requests:
            method = methods[router.places.of_upload(header, current())]
            async with aclosing(method(_joined(header, requests), context)) as answers:
                async for answer in answers:
                    yield answer
            return
        async for answer in methods[FIRST](requests, context):
            yield answer

    return call


async def _joined(header: Any, rest: AsyncIterator[Any]) -> AsyncIterator[Any]:
    yield header
    async for request in rest:
        yield request


def _merged(pages: MergedList) -> Route:
    """To the shard of the business or book that is listed, else to all of them."""

    def route(router: Router, methods: Sequence[Method]) -> Method:
        async def call(request: Any, context: Any) -> Any:
            shard = router.places.of_list(request, current())
            if shard is not None:
                return await methods[shard](request, context)
            if getattr(request, "oldest_first", False):
                return await oldest_first.page(methods, request, context, router.page_tokens)
            return await pages.answer(methods, request, context, router.page_tokens)

        return call

    return route


def _watched(router: Router, methods: Sequence[Method]) -> Method:
    """To the shard of the business or book that is watched, else to all of them."""

    def call(request: Any, context: Any) -> Any:
        shard = router.places.of_list(request, current())
        if shard is None:
            return watches.watch(methods, request, context)
        return methods[shard](request, context)

    return call


def _of_ledgers(joined: Callable[[Sequence[Any], Any, Any], Any]) -> Route:
    """To the shard whose ledger is named, else to all of them, whose answers are joined."""

    def route(router: Router, methods: Sequence[Method]) -> Method:
        def call(request: Any, context: Any) -> Any:
            shard = router.places.of_ledger(request, current())
            if shard is None:
                return joined(methods, request, context)
            return methods[shard](request, context)

        return call

    return route


def _proved(router: Router, methods: Sequence[Method]) -> Method:
    """To the shard that has the event."""

    def call(request: Any, context: Any) -> Any:
        first = router.places.of_event(request, current())
        return proofs.prove(methods, first, request, context)

    return call


def _all(joined: Callable[[Sequence[Any], Any, Any], Any]) -> Route:
    """To all shards, whose answers are joined."""

    def route(_: Router, methods: Sequence[Method]) -> Method:
        return partial(joined, methods)

    return route


def _parted(router: Router, methods: Sequence[Method]) -> Method:
    """To the shards of the items."""
    batch = PartedBatch(router.places, methods)

    async def call(request: Any, context: Any) -> Any:
        return await batch.redeem(request, context, current())

    return call


_CODE: Final = _to(Places.of_code)
_BOOK: Final = _to(Places.of_book)
_CHANGED_BOOK: Final = _to(Places.of_changed_book)
_LOCK: Final = _to(Places.of_lock)
_REDEMPTION: Final = _to(Places.of_redemption)

ROUTES: Final[Mapping[str, Route]] = {
    "CouponBookService/CreateCouponBook": _to(Places.of_new_book),
    "CouponBookService/GetCouponBook": _BOOK,
    "CouponBookService/ListCouponBooks": _merged(BOOKS),
    "CouponBookService/UpdateCouponBook": _CHANGED_BOOK,
    "CouponBookService/ActivateCouponBook": _BOOK,
    "CouponBookService/PauseCouponBook": _BOOK,
    "CouponBookService/CloseCouponBook": _BOOK,
    "CouponBookService/GetCouponBookStats": _BOOK,
    "CouponCodeService/PreviewCodes": _BOOK,
    "CouponCodeService/GenerateCodes": _BOOK,
    "CouponCodeService/ImportCodes": _upload,
    "CouponCodeService/ExportCodes": _BOOK,
    "CouponCodeService/GetCode": _CODE,
    "CouponCodeService/ListCodes": _BOOK,
    "CouponCodeService/DisableCode": _CODE,
    "CouponCodeService/EnableCode": _CODE,
    "CouponCodeService/ChangeCodes": _BOOK,
    "AssignmentService/AssignCode": _CODE,
    "AssignmentService/AssignRandomCode": _BOOK,
    "AssignmentService/BatchAssignRandomCodes": _BOOK,
    "AssignmentService/RevokeAssignment": _CODE,
    "AssignmentService/TransferAssignment": _CODE,
    "AssignmentService/ListUserCoupons": _merged(USER_COUPONS),
    "AssignmentService/ListAssignments": _BOOK,
    "RedemptionService/ValidateCode": _CODE,
    "RedemptionService/QualifyCoupons": _CODE,
    "RedemptionService/LockCode": _CODE,
    "RedemptionService/ExtendLock": _LOCK,
    "RedemptionService/UnlockCode": _LOCK,
    "RedemptionService/GetLock": _LOCK,
    "RedemptionService/ListLocks": _to(Places.of_locks),
    "RedemptionService/RedeemCode": _CODE,
    "RedemptionService/BatchRedeemCodes": _parted,
    "RedemptionService/RollbackRedemption": _REDEMPTION,
    "RedemptionService/AdjustRedemption": _REDEMPTION,
    "RedemptionService/GetRedemption": _REDEMPTION,
    "RedemptionService/ListRedemptions": _merged(REDEMPTIONS),
    "RedemptionService/ListRefusals": _merged(REFUSALS),
    "RedemptionService/Checkout": _first,
    "AuditService/ListAuditEvents": _merged(EVENTS),
    "AuditService/WatchAuditEvents": _watched,
    "AuditService/EraseUser": _all(erasures.erase),
    "AuditService/GetErasure": _all(erasures.get),
    "AuditService/VerifyAudit": _of_ledgers(proofs.verify),
    "AuditService/GetAuditProof": _proved,
    "AuditService/GetAuditCheckpoint": _of_ledgers(proofs.checkpoint),
}
"""By `Service/Method`, in the order of the contract."""
