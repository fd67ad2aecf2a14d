"""Erasures of users, who are users in all shards: one shard after the other, told as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any

from coupon_service.errors import ErasureNotFound
from coupon_service.v1 import audit_service_pb2 as pb

Erase = Callable[[pb.EraseUserRequest, Any], Any]
Get = Callable[[pb.GetErasureRequest, Any], Awaitable[pb.GetErasureResponse]]


async def erase(
    shards: Sequence[Erase], request: pb.EraseUserRequest, context: Any
) -> AsyncGenerator[pb.EraseUserResponse]:
    """Erases the user in each shard; the progress of all. A repeat goes on in the first shard that
    is not done, and tells nothing of those before: who leaves early each time comes to an end."""
    told: list[pb.EraseUserResponse] = []
    for shard in shards:
        before = list(told)
        async with aclosing(shard(request, context)) as steps:
            async for step in steps:
                told = [*before, step]
                if step.replayed and len(told) < len(shards):
                    continue
                yield pb.EraseUserResponse(
                    erasure=_joined([it.erasure for it in told], len(shards)),
                    replayed=len(told) == len(shards) and all(it.replayed for it in told),
                )


async def get(
    shards: Sequence[Get], request: pb.GetErasureRequest, context: Any
) -> pb.GetErasureResponse:
    """How far it has come in all shards. Raises ErasureNotFound where none has begun."""
    found: list[pb.Erasure] = []
    for shard in shards:
        try:
            found.append((await shard(request, context)).erasure)
        except ErasureNotFound:
            continue
    if not found:
        raise ErasureNotFound
    return pb.GetErasureResponse(erasure=_joined(found, len(shards)))


def _joined(erasures: Sequence[pb.Erasure], shards: int) -> pb.Erasure:
    """The erasure of all shards, from those that have begun with it: done when all of them are."""
    rows: Counter[str] = Counter()
    for it in erasures:
        rows.update(it.changed_rows)
    joined = pb.Erasure(
        pseudonym=erasures[0].pseudonym,
        state=min(it.state for it in erasures),
        begin_time=min((it.begin_time for it in erasures), key=_nanoseconds),
        changed_rows=rows,
    )
    if joined.state == pb.ERASURE_STATE_ERASED:
        if len(erasures) == shards:
            ends = (it.erase_time for it in erasures)
            joined.erase_time.CopyFrom(max(ends, key=_nanoseconds))
        else:
            joined.state = pb.ERASURE_STATE_ENDING
    return joined


def _nanoseconds(time: Any) -> int:
    return time.ToNanoseconds()
