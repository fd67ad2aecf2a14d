"""What seals prove of several shards, each of which has a ledger and a chain of seals of its
own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, Final

from coupon_service.errors import EventNotFound, FieldViolation, InvalidArgument, SealNotFound
from coupon_service.v1 import audit_service_pb2 as pb

Verify = Callable[[pb.VerifyAuditRequest, Any], Any]
Prove = Callable[[pb.GetAuditProofRequest, Any], Awaitable[pb.GetAuditProofResponse]]
Sign = Callable[[pb.GetAuditCheckpointRequest, Any], Awaitable[pb.GetAuditCheckpointResponse]]

ADDED_UP: Final = ("seal_count", "row_count", "erased_row_count", "archived_row_count")
ADDED_UP_AT_END: Final = ("unsealed_row_count", "unnumbered_row_count", "checkpoint")


async def verify(
    shards: Sequence[Verify], request: pb.VerifyAuditRequest, context: Any
) -> AsyncIterator[pb.VerifyAuditResponse]:
    """Compares the ledger of one shard after the other. The last message of the last one is the
    only one that is `done`, and has what is said of all at the end."""
    so_far = pb.VerifyAuditResponse()
    for left, shard in zip(reversed(range(len(shards))), shards, strict=True):
        last = so_far
        async with aclosing(shard(request, context)) as messages:
            async for message in messages:
                last = _sum(so_far, message)
                yield _without_end(last) if left else last
        so_far = last


def _sum(so_far: pb.VerifyAuditResponse, message: pb.VerifyAuditResponse) -> pb.VerifyAuditResponse:
    """The message of a shard, with what those before it came to."""
    added = pb.VerifyAuditResponse()
    added.CopyFrom(message)
    for name in (*ADDED_UP, *(ADDED_UP_AT_END if message.done else ())):
        setattr(added, name, getattr(so_far, name) + getattr(message, name))
    return added


def _without_end(message: pb.VerifyAuditResponse) -> pb.VerifyAuditResponse:
    """As of a shard that is not the last one."""
    kept = pb.VerifyAuditResponse()
    kept.CopyFrom(message)
    for name in (*ADDED_UP_AT_END, "done"):
        kept.ClearField(name)
    return kept


async def prove(
    shards: Sequence[Prove], first: int, request: pb.GetAuditProofRequest, context: Any
) -> pb.GetAuditProofResponse:
    """The proof of the shard that has the event. `first`: the one to which its id leads, if it is
    one that leads to a shard. Raises EventNotFound, or what is wrong with one of the shards."""
    try:
        return await shards[first](request, context)
    except EventNotFound:
        others = [it for number, it in enumerate(shards) if number != first]
    answers = await asyncio.gather(*(it(request, context) for it in others), return_exceptions=True)
    failure: BaseException = EventNotFound()
    for answer in answers:
        if not isinstance(answer, BaseException):
            return answer
        if not isinstance(answer, EventNotFound):
            failure = answer
    raise failure


async def checkpoint(
    shards: Sequence[Sign], request: pb.GetAuditCheckpointRequest, context: Any
) -> pb.GetAuditCheckpointResponse:
    """The checkpoints of all shards that have a seal. Raises SealNotFound where none has, and
    InvalidArgument for the number of a seal, of which each shard has its own."""
    if request.number:
        expected = "expected a shard, or a business_id, with it: each shard has seals of its own"
        raise InvalidArgument((FieldViolation("number", expected),))
    signed: list[pb.GetAuditCheckpointResponse] = []
    for shard in shards:
        try:
            signed.append(await shard(request, context))
        except SealNotFound:
            continue
    if not signed:
        raise SealNotFound
    notes = "".join(it.checkpoint for it in signed)
    return pb.GetAuditCheckpointResponse(checkpoint=notes, public_key=signed[0].public_key)
