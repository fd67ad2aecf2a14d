"""AuditService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from coupon_service.erasure import Eraser
from coupon_service.rpc.audit_watches import AuditWatches
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import audit as convert
from coupon_service.rpc.convert import erasures as convert_erasures
from coupon_service.rpc.freshness import tell_lag
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.store.ledger_feed import LedgerFeed
from coupon_service.store.queries.reads import Reads, event_position
from coupon_service.store.replica import NearReads
from coupon_service.v1 import audit_service_pb2 as pb
from coupon_service.v1.audit_service_pb2_grpc import AuditServiceServicer


class AuditServicer(AuditServiceServicer):
    """Answers with what Reads finds in the ledger, and what the Eraser does."""

    def __init__(
        self,
        reads: NearReads[Reads],
        eraser: Eraser,
        page_tokens: PageTokens,
        feed: LedgerFeed,
        watches: AuditWatches,
    ) -> None:
        self._reads = reads
        self._eraser = eraser
        self._page_tokens = page_tokens
        self._feed = feed
        self._watches = watches

    async def ListAuditEvents(
        self, request: pb.ListAuditEventsRequest, context: Any
    ) -> pb.ListAuditEventsResponse:
        wanted, page = convert.read_list(request, current(), self._page_tokens)
        if request.oldest_first:
            after = None if page.after is None else convert.ledger_position(page.after)
            followed = await self._feed.page(wanted, page.size, after)
            return convert.oldest_first_message(request, followed, self._page_tokens)
        (events, end), lag_ms = await self._reads.ask(
            lambda reads: reads.audit_events(wanted, page.size, page.after)
        )
        tell_lag(context, lag_ms)
        messages, end = page_within_bounds(events, convert.event_message, end, event_position)
        return pb.ListAuditEventsResponse(
            events=messages, next_page_token=self._page_tokens.token(request, end)
        )

    async def WatchAuditEvents(
        self, request: pb.WatchAuditEventsRequest, context: Any
    ) -> AsyncIterator[pb.WatchAuditEventsResponse]:
        watch = convert.read_watch(request, current(), self._page_tokens)
        async with aclosing(self._watches.messages(watch, current())) as messages:
            async for message in messages:
                yield message

    async def EraseUser(
        self, request: pb.EraseUserRequest, context: Any
    ) -> AsyncIterator[pb.EraseUserResponse]:
        user_id, call = convert_erasures.read_erase(request, current())
        async with aclosing(self._eraser.erase(user_id, call)) as steps:
            async for progress in steps:
                yield convert_erasures.progress_message(progress)

    async def GetErasure(
        self, request: pb.GetErasureRequest, context: Any
    ) -> pb.GetErasureResponse:
        erased = await self._eraser.get(convert_erasures.read_get(request, current()))
        return pb.GetErasureResponse(erasure=convert_erasures.erasure_message(erased))
