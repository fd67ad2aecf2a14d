"""A watch over all shards: nothing twice, nothing left out, wherever it is cut off."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any

import pytest

from coupon_service.errors import DatabaseUnavailable, InvalidArgument
from coupon_service.rpc.shards.watches import watch
from coupon_service.v1 import audit_service_pb2 as pb

Shard = Callable[[pb.WatchAuditEventsRequest, Any], AsyncGenerator[pb.WatchAuditEventsResponse]]


def shard_with(name: str, count: int, waits: Sequence[float] = ()) -> Shard:
    """A shard with so many events, each in a message of its own, after an empty one for `from_now`;
    a token is how many were sent."""

    async def messages(
        request: pb.WatchAuditEventsRequest, _: Any
    ) -> AsyncGenerator[pb.WatchAuditEventsResponse]:
        begin = int(request.resume_token or "0")
        if request.from_now and not request.resume_token:
            begin = count
        for wait_s in waits:
            await asyncio.sleep(wait_s)
        yield pb.WatchAuditEventsResponse(resume_token=str(begin))
        for number in range(begin, count):
            message = pb.WatchAuditEventsResponse(resume_token=str(number + 1))
            message.events.add(event_id=f"{name}{number}")
            if number == count - 1:
                message.complete_time.FromSeconds(count)
            yield message

    return messages


async def seen(
    shards: Sequence[Shard], token: str = "", messages: int = 1_000, **fields: Any
) -> tuple[list[str], str]:
    """The events of so many messages, and the token of the last one."""
    found: list[str] = []
    request = pb.WatchAuditEventsRequest(resume_token=token, **fields)
    stream = watch(shards, request, None)
    async for message in stream:
        found += [it.event_id for it in message.events]
        token = message.resume_token
        messages -= 1
        if not messages:
            break
    await stream.aclose()
    return found, token


@pytest.mark.parametrize("cut", range(1, 14))
async def test_a_watch_that_is_cut_off_goes_on_where_it_was(cut: int) -> None:
    shards = [shard_with("a", 3), shard_with("b", 5), shard_with("c", 0)]
    first, token = await seen(shards, messages=cut)
    rest, _ = await seen(shards, token)
    found = first + rest
    assert sorted(found) == sorted(["a0", "a1", "a2", "b0", "b1", "b2", "b3", "b4"])
    for name in "ab":
        assert [it for it in found if it[0] == name] == sorted(it for it in found if it[0] == name)


async def test_a_watch_from_now_begins_at_once_in_all_shards() -> None:
    slow = shard_with("b", 2, waits=[0.05])
    found, token = await seen([shard_with("a", 2), slow], messages=1, from_now=True)
    assert (found, token) == ([], "2.2")
    later = [shard_with("a", 3), shard_with("b", 4)]
    found, _ = await seen(later, token, from_now=True)
    assert sorted(found) == ["a2", "b2", "b3"]


async def test_it_is_complete_up_to_where_the_slowest_shard_is() -> None:
    stream = watch([shard_with("a", 1), shard_with("b", 4)], pb.WatchAuditEventsRequest(), None)
    messages = [it async for it in stream]
    assert messages[-1].complete_time.seconds == 1
    assert not messages[0].HasField("complete_time")


async def test_a_shard_that_fails_ends_the_watch() -> None:
    async def failing(_: Any, __: Any) -> AsyncGenerator[pb.WatchAuditEventsResponse]:
        yield pb.WatchAuditEventsResponse(resume_token="0")
        raise DatabaseUnavailable

    with pytest.raises(DatabaseUnavailable):
        await seen([shard_with("a", 1, waits=[30.0]), failing])


@pytest.mark.parametrize("token", ["5", "1.2.3", "..."])
async def test_a_token_has_one_for_each_shard(token: str) -> None:
    with pytest.raises(InvalidArgument):
        await seen([shard_with("a", 1), shard_with("b", 1)], token)
