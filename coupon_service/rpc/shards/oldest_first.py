"""ListAuditEvents, oldest first, over all businesses: the ledgers of the shards, merged by time.

Each ledger keeps its order, in which times may go back a little, and of several the one goes on
whose next event is the oldest. A page token has that of each shard, as a resume token has, so that
no event is listed twice or missed. Where shards have no more it is another event's time that
counts: what one of them gets later may be older than what another one had.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from coupon_service.rpc.convert.audit import token_position_after_message
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rpc.paging import ROWS_MAX_BYTES, PageTokens
from coupon_service.rpc.shards.watches import JOINT, split_token
from coupon_service.v1 import audit_service_pb2 as pb

Listing = Callable[[pb.ListAuditEventsRequest, Any], Awaitable[pb.ListAuditEventsResponse]]


@dataclass(slots=True)
class _Ledger:
    """The page of a shard, how much of it was taken, and the token that it is the page of."""

    page: pb.ListAuditEventsResponse
    token: str
    taken: int = 0

    @property
    def is_read(self) -> bool:
        return self.taken == len(self.page.events)

    @property
    def has_more(self) -> bool:
        """Whether something may come before the events of the others that nobody knows yet."""
        return self.is_read and bool(self.page.next_page_token)

    @property
    def next(self) -> pb.AuditEvent:
        return self.page.events[self.taken]

    @property
    def time(self) -> tuple[int, int]:
        """Of the next event."""
        time = self.next.event_time
        return time.seconds, time.nanos

    def token_after(self, request: pb.ListAuditEventsRequest, tokens: PageTokens) -> str:
        """What goes on after all that was taken."""
        if self.has_more:
            return self.page.next_page_token
        if not self.taken:
            return self.token
        last = self.page.events[self.taken - 1]
        return tokens.token(request, token_position_after_message(last))


async def page(
    shards: Sequence[Listing], request: pb.ListAuditEventsRequest, context: Any, tokens: PageTokens
) -> pb.ListAuditEventsResponse:
    """A page of the events of all shards. Raises InvalidArgument, and what a shard raises."""
    asked = split_token("page_token", request.page_token, len(shards))
    parts = [_part(request, it) for it in asked]
    pages = await asyncio.gather(
        *(shard(part, context) for shard, part in zip(shards, parts, strict=True))
    )
    ledgers = [_Ledger(*it) for it in zip(pages, asked, strict=True)]
    size = Fields().page(parts[0], tokens).size
    response = pb.ListAuditEventsResponse(events=_merged(ledgers, size))
    if not all(it.is_read and not it.has_more for it in ledgers):
        response.next_page_token = JOINT.join(it.token_after(request, tokens) for it in ledgers)
    elif all(it.HasField("complete_time") for it in pages):
        complete = (it.complete_time for it in pages)
        response.complete_time.CopyFrom(min(complete, key=lambda it: it.ToNanoseconds()))
    return response


def _part(request: pb.ListAuditEventsRequest, token: str) -> pb.ListAuditEventsRequest:
    part = pb.ListAuditEventsRequest()
    part.CopyFrom(request)
    part.page_token = token
    return part


def _merged(ledgers: Sequence[_Ledger], size: int) -> list[pb.AuditEvent]:
    """The next events, as many as a page has or an answer can hold."""
    events: list[pb.AuditEvent] = []
    left_bytes = ROWS_MAX_BYTES
    while len(events) < size and not any(it.has_more for it in ledgers):
        oldest = min((it for it in ledgers if not it.is_read), key=lambda it: it.time, default=None)
        if oldest is None:
            break
        left_bytes -= oldest.next.ByteSize()
        if left_bytes < 0 and events:
            break
        events.append(oldest.next)
        oldest.taken += 1
    return events
