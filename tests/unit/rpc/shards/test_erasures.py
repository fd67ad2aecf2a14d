"""An erasure in all shards, one after the other, told as one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from coupon_service.rpc.shards.erasures import Erase, erase
from coupon_service.v1 import audit_service_pb2 as pb

ENDING, ERASED = pb.ERASURE_STATE_ENDING, pb.ERASURE_STATE_ERASED


def shard_of(done: list[str], name: str) -> Erase:
    """A shard that is erased when its second answer was taken."""

    async def steps(_: pb.EraseUserRequest, __: Any) -> AsyncIterator[pb.EraseUserResponse]:
        replayed = name in done
        if not replayed:
            yield pb.EraseUserResponse(erasure=pb.Erasure(state=ENDING))
            done.append(name)
        answer = pb.Erasure(state=ERASED, changed_rows={"coupon_orders": 1})
        yield pb.EraseUserResponse(erasure=answer, replayed=replayed)

    return steps


async def test_who_leaves_after_two_answers_each_time_comes_to_an_end() -> None:
    done: list[str] = []
    shards = [shard_of(done, name) for name in "abc"]
    last = pb.EraseUserResponse()
    for _ in shards:
        answers = erase(shards, pb.EraseUserRequest(), None)
        taken = [await anext(answers) for _ in range(2)]
        await answers.aclose()
        last = taken[-1]
        assert not last.replayed
    assert (done, last.erasure.state) == (["a", "b", "c"], ERASED)
    assert last.erasure.changed_rows == {"coupon_orders": 3}
    repeated = [it async for it in erase(shards, pb.EraseUserRequest(), None)]
    assert [(it.replayed, it.erasure.state) for it in repeated] == [(True, ERASED)]
