"""WatchAuditEvents over all businesses: the ledgers of the shards, as one stream.

Events of a business are in its shard, and so in their order; those of several shards come as each
has them. A resume token has that of each shard, joined by dots, which tokens have not; an empty one
is where the watch begins.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from coupon_service.errors import FieldViolation, InvalidArgument
from coupon_service.v1 import audit_service_pb2 as pb

Watch = Callable[[pb.WatchAuditEventsRequest, Any], Any]
Step = pb.WatchAuditEventsResponse | BaseException | None
"""What a shard sends, why it fails, or that it is at its end."""

JOINT: Final = "."


async def watch(
    shards: Sequence[Watch], request: pb.WatchAuditEventsRequest, context: Any
) -> AsyncGenerator[pb.WatchAuditEventsResponse]:
    """The messages of all shards. Raises InvalidArgument, and what the watch of a shard raises."""
    tokens = split_token("resume_token", request.resume_token, len(shards))
    steps: asyncio.Queue[tuple[int, Step]] = asyncio.Queue(1)  # nobody reads ahead of the client
    tasks = [
        asyncio.create_task(_read(number, shard, _part(request, token), context, steps))
        for number, (shard, token) in enumerate(zip(shards, tokens, strict=True))
    ]
    try:
        async with aclosing(_joined(steps, tokens, at_once=request.from_now)) as messages:
            async for message in messages:
                yield message
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def split_token(field: str, token: str, shards: int) -> list[str]:
    """The tokens of the shards; `field`: that has the joined one. Raises InvalidArgument."""
    tokens = token.split(JOINT) if token else [""] * shards
    if len(tokens) != shards:
        named = field.replace("page_token", "next_page_token")
        expected = f"expected the {named} of an answer to the same query"
        raise InvalidArgument((FieldViolation(field, expected),))
    return tokens


def _part(request: pb.WatchAuditEventsRequest, token: str) -> pb.WatchAuditEventsRequest:
    part = pb.WatchAuditEventsRequest()
    part.CopyFrom(request)
    part.resume_token = token
    return part


async def _read(
    number: int,
    shard: Watch,
    request: pb.WatchAuditEventsRequest,
    context: Any,
    steps: asyncio.Queue[tuple[int, Step]],
) -> None:
    """Puts what a shard sends where the stream takes it from."""
    try:
        async with aclosing(shard(request, context)) as messages:
            async for message in messages:
                await steps.put((number, message))
    except Exception as error:  # noqa: BLE001 - it is that of the stream
        await steps.put((number, error))
    else:
        await steps.put((number, None))


async def _joined(
    steps: asyncio.Queue[tuple[int, Step]], tokens: list[str], *, at_once: bool
) -> AsyncGenerator[pb.WatchAuditEventsResponse]:
    """What is sent, with a token for all shards. `at_once`: not before each of them has begun,
    since one that begins now would begin later when it is resumed."""
    latest: dict[int, pb.WatchAuditEventsResponse] = {}
    unsent = pb.WatchAuditEventsResponse()
    left = len(tokens)
    while left:
        number, step = await steps.get()
        if isinstance(step, BaseException):
            raise step
        if step is None:
            left -= 1
            continue
        latest[number], tokens[number] = step, step.resume_token
        unsent.events.extend(step.events)
        if at_once and not all(tokens):
            continue
        yield _message(unsent, latest, tokens)
        unsent = pb.WatchAuditEventsResponse()


def _message(
    unsent: pb.WatchAuditEventsResponse,
    latest: dict[int, pb.WatchAuditEventsResponse],
    tokens: Sequence[str],
) -> pb.WatchAuditEventsResponse:
    """The events with what holds for all shards: complete up to where the slowest is."""
    unsent.resume_token = JOINT.join(tokens)
    complete = [it.complete_time for it in latest.values() if it.HasField("complete_time")]
    if len(complete) == len(tokens):
        unsent.complete_time.CopyFrom(min(complete, key=lambda it: it.ToNanoseconds()))
    stalls = [it.stall for it in latest.values() if it.HasField("stall")]
    if stalls:
        unsent.stall.CopyFrom(max(stalls, key=lambda it: it.duration.ToNanoseconds()))
    return unsent
