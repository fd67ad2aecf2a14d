"""Ledgers of several shards are merged by time, each in its own order, and each event once."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coupon_service.errors import InvalidArgument
from coupon_service.rpc.paging import PageTokens
from coupon_service.rpc.shards import oldest_first
from coupon_service.v1 import audit_service_pb2 as pb

TOKENS = PageTokens([b"only this test"])


class Shard:
    """A ledger with events of these times; each page looks at so many of them, and leaves out those
    that the filter does."""

    def __init__(self, number: int, times: list[int], looks_at: int, keeps: int) -> None:
        self.events = [
            pb.AuditEvent(
                event_id=str(UUID(int=number * 1_000 + at)), sequence=at, code=f"{number}-{at}"
            )
            for at in range(1, len(times) + 1)
        ]
        for event, time in zip(self.events, times, strict=True):
            event.event_time.seconds = time
        self.looks_at = looks_at
        self.keeps = keeps

    @property
    def kept(self) -> list[pb.AuditEvent]:
        return [it for it in self.events if it.sequence % self.keeps == 0]

    async def __call__(self, request: pb.ListAuditEventsRequest, _: Any) -> Any:
        position = TOKENS.position(request)
        after = position[0] if position else 0
        page = pb.ListAuditEventsResponse()
        for event in self.events[after : after + self.looks_at]:
            after = event.sequence
            if after % self.keeps == 0:
                page.events.append(event)
            if len(page.events) == request.page_size:
                break
        if after < len(self.events):
            position = (after, "0001-01-01T00:00:00+00:00", self.events[after - 1].event_id)
            page.next_page_token = TOKENS.token(request, position)
        else:
            page.complete_time.seconds = 1_000
        return page


@given(
    ledgers=st.lists(
        st.tuples(st.lists(st.integers(1, 50), max_size=12), st.integers(1, 5), st.integers(1, 3)),
        min_size=2,
        max_size=4,
    ),
    size=st.integers(1, 7),
)
def test_each_event_is_listed_once_in_the_order_of_its_ledger(
    ledgers: list[tuple[list[int], int, int]], size: int
) -> None:
    shards = [Shard(number, sorted(times), *of) for number, (times, *of) in enumerate(ledgers)]
    request = pb.ListAuditEventsRequest(oldest_first=True, page_size=size)
    listed: list[pb.AuditEvent] = []
    while True:
        page = asyncio.run(oldest_first.page(shards, request, None, TOKENS))
        assert len(page.events) <= size
        listed += page.events
        request.page_token = page.next_page_token
        assert page.HasField("complete_time") is not bool(page.next_page_token)
        if not page.next_page_token:
            break
    assert [it.event_time.seconds for it in listed] == sorted(
        it.event_time.seconds for shard in shards for it in shard.kept
    )
    for number, shard in enumerate(shards):
        own = [it for it in listed if it.code.startswith(f"{number}-")]
        assert own == shard.kept


def test_token_of_another_number_of_shards_is_refused() -> None:
    shards = [Shard(it, [1, 2], 5, 1) for it in range(3)]
    request = pb.ListAuditEventsRequest(oldest_first=True, page_size=1)
    page = asyncio.run(oldest_first.page(shards, request, None, TOKENS))
    request.page_token = page.next_page_token
    with pytest.raises(InvalidArgument):
        asyncio.run(oldest_first.page(shards[:2], request, None, TOKENS))
