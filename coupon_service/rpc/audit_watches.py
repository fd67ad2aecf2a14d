"""WatchAuditEvents streams: pages of the ledger as messages, each with a token to go on from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from time import monotonic
from typing import Final

from coupon_service.errors import StreamEnded
from coupon_service.rpc.context import KeyAwaitedError, RequestContext
from coupon_service.rpc.convert import audit as convert
from coupon_service.rpc.open_streams import OpenStreams
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.store.ledger_feed import Followed, LedgerFeed, LedgerReader
from coupon_service.store.queries.followed_events import BEGINNING, LedgerPosition
from coupon_service.v1 import audit_service_pb2 as pb

METHOD: Final = "AuditService/WatchAuditEvents"

HEARTBEAT_S: Final = 5.0
"""A stream without events has a message as often."""


class AuditWatches:
    """Answers the WatchAuditEvents streams of one ledger."""

    def __init__(
        self,
        feed: LedgerFeed,
        page_tokens: PageTokens,
        streams: OpenStreams,
        authenticate: Callable[[str, RequestContext], None],
    ) -> None:
        """`authenticate` raises when a token is valid no more, or may not do this any more."""
        self._feed = feed
        self._page_tokens = page_tokens
        self._streams = streams
        self._authenticate = authenticate

    async def messages(
        self, watch: convert.Watch, rpc: RequestContext
    ) -> AsyncGenerator[pb.WatchAuditEventsResponse]:
        """What is sent, one after the other: of the ledger no more is read than one message has.

        Raises StreamEnded when it is to go on elsewhere, Overloaded, ResumeTokenAhead,
        Unauthenticated, PermissionDenied, DatabaseUnavailable.
        """
        ended = asyncio.Event()
        whose = rpc.caller if rpc.authenticated else rpc.peer
        with self._streams.opened(whose, ended.set), self._feed.following() as follower:
            reader: LedgerReader | None = None
            last_number: int | None = None
            sent_s, was_stalled = -HEARTBEAT_S, False
            token = watch.query.resume_token
            while not ended.is_set():
                is_due = monotonic() - sent_s >= HEARTBEAT_S
                if is_due:
                    self._authenticate_again(rpc)
                is_stalled = self._feed.stall is not None
                is_due |= is_stalled > was_stalled
                was_stalled = is_stalled
                if not self._feed.is_known:  # a transaction of before the first look is open
                    if is_stalled and is_due:
                        yield self._with_stall(pb.WatchAuditEventsResponse(resume_token=token))
                        sent_s = monotonic()
                    await self._feed.tick()
                    continue
                if reader is None:
                    reader = self._feed.reader(watch.wanted, await self._start(watch))
                    if watch.stop_at_end:
                        await self._feed.tick()  # of a look that may have begun before
                        await self._feed.tick()
                        last_number = self._feed.last_number
                followed = await reader.next()
                is_last = last_number is not None and reader.read_up_to >= last_number
                if followed.page.events or is_due or is_last:
                    message = self._message(watch, reader, followed)
                    token = message.resume_token
                    yield message
                    sent_s = monotonic()
                if is_last and reader.is_caught_up:  # a message that is full takes it back
                    return
                if reader.is_caught_up:
                    follower.caught_up_s = monotonic()
                    await self._feed.tick()
            raise StreamEnded

    async def _start(self, watch: convert.Watch) -> LedgerPosition:
        if watch.after is not None:
            return watch.after
        if watch.from_now:
            return await self._feed.end()
        if watch.wanted.start_time is not None:
            return await self._feed.start(watch.wanted.start_time)
        return BEGINNING

    def _message(
        self, watch: convert.Watch, reader: LedgerReader, followed: Followed
    ) -> pb.WatchAuditEventsResponse:
        """Of as many of the events as a message can hold; the reader goes back to the others."""
        page = followed.page
        end = convert.token_position(page.end)
        events, cut = page_within_bounds(
            page.events, convert.event_message, end, convert.token_position_after
        )
        if cut is not None and len(events) < len(page.events):
            end = cut
            reader.go_back(convert.ledger_position(cut))
        message = pb.WatchAuditEventsResponse(
            events=events, resume_token=self._page_tokens.token(watch.query, end)
        )
        if followed.complete_time is not None and reader.is_caught_up:
            message.complete_time.FromDatetime(followed.complete_time)
        return self._with_stall(message)

    def _with_stall(self, message: pb.WatchAuditEventsResponse) -> pb.WatchAuditEventsResponse:
        if (stall := self._feed.stall) is not None:
            message.stall.duration.FromMilliseconds(int(stall.seconds * 1000))
            message.stall.holders.extend(map(str, stall.holders))
        return message

    def _authenticate_again(self, rpc: RequestContext) -> None:
        with suppress(KeyAwaitedError):  # keys are fetched, and are here by the next time
            self._authenticate(METHOD, rpc)
