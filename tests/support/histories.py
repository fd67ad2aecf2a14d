"""Callers that use one code at the same time, and remember what they asked and were answered."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Final

import grpc
import grpc.aio
from support.code_specification import (
    Answer,
    Call,
    Code,
    Count,
    Lock,
    Redeem,
    Rollback,
    Rules,
    Unlock,
    answered_with,
    perform,
)
from support.linearizability import Operation, is_whole, longest_order
from support.service import codes as codes_pb
from support.service import reason_of, redemptions

from coupon_service.model import EventType, event_id
from coupon_service.model.codes import bucket_of
from coupon_service.v1 import (
    assignment_service_pb2_grpc,
    coupon_code_service_pb2_grpc,
    redemption_service_pb2_grpc,
)

Recorded = Operation[Call, Answer]

OPEN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
"""The outcome is not known."""

NOTHING_DONE: Final = {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
"""Refused for reasons that have nothing to do with the code: it is as if nobody had asked."""

OPERATIONS_MAX: Final = 19
"""Of callers; what the code has come to is one more."""

CALLERS: Final = 3
USERS: Final = ("ann", "bob")
ORDERS: Final = ("", "", "first", "second")
LOCK_TTL_S: Final = 600


class Connection:
    """A channel of its own to the service."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        # types-grpcio does not know the stubs of grpc.aio.
        channel: Any = self.channel
        self.redemptions: Any = redemption_service_pb2_grpc.RedemptionServiceStub(channel)
        self.codes: Any = coupon_code_service_pb2_grpc.CouponCodeServiceStub(channel)
        self.assignments: Any = assignment_service_pb2_grpc.AssignmentServiceStub(channel)


@dataclass(slots=True)
class Impatience:
    """How often callers give up, and after how long at most."""

    share: float = 0.0
    within_s: float = 0.03


@dataclass(slots=True)
class Record:
    """All that callers did with one code, and what they know of it."""

    code: str
    rules: Rules
    operations: list[Recorded] = field(default_factory=list[Recorded])
    made: list[Call] = field(default_factory=list[Call])
    redeemed: dict[str, str] = field(default_factory=dict[str, str])
    """The ids of redemptions that were answered, by request."""
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """The holder and the token of locks that were answered."""

    @property
    def is_full(self) -> bool:
        """Whether there are as many operations as can be checked."""
        return len(self.made) >= OPERATIONS_MAX

    def name_of(self, event: EventType, row_id: str) -> str:
        """The request that made a redemption or lock, by its id."""
        bucket = bucket_of(self.code)
        requests = {it.request for it in self.made if isinstance(it, (Redeem, Lock))}
        return next(
            request
            for request in requests
            if str(event_id(bucket, event, "anonymous", request, self.code)) == row_id
        )


class Caller:
    """Makes one call after the other."""

    def __init__(
        self, record: Record, connection: Connection, chance: random.Random, impatience: Impatience
    ) -> None:
        self._record = record
        self._connection = connection
        self._chance = chance
        self._impatience = impatience

    async def run(self, calls: int) -> None:
        """So many calls, those that repeat an open one not counted."""
        for _ in range(calls):
            await asyncio.sleep(self._chance.choice((0, 0, 0.002, 0.01)))
            call = self._next()
            while not self._record.is_full and not await self._make(call):
                if self._chance.random() < 0.3:
                    break

    def _next(self) -> Call:
        """What to ask now: new, or an earlier call again, or its request_id for something else."""
        chance, record = self._chance, self._record
        if record.made and chance.random() < 0.25:
            call = chance.choice(record.made)
            if isinstance(call, (Redeem, Lock)) and chance.random() < 0.2:
                return replace(call, user=chance.choice(USERS))
            return call
        request, user = f"r{len(record.made)}-{chance.randrange(10_000)}", chance.choice(USERS)
        kinds = ["redeem"] * 4 + ["count"]
        if record.redeemed:
            kinds += ["roll back"] * 2
        if record.rules.locks != "OFF":
            kinds += ["lock"] * 4
            if record.tokens:
                kinds += ["unlock"] + ["redeem with lock"] * 3
        match chance.choice(kinds):
            case "redeem":
                return Redeem(request, user, chance.choice(ORDERS))
            case "roll back":
                return Rollback(request, chance.choice(sorted(record.redeemed)))
            case "lock":
                return Lock(request, user)
            case "unlock":
                return Unlock(chance.choice(sorted(record.tokens)))
            case "redeem with lock":
                lock = chance.choice(sorted(record.tokens))
                return Redeem(request, record.tokens[lock][0], chance.choice(ORDERS), lock)
            case _:
                return Count()

    async def _make(self, call: Call) -> bool:
        """Asks, and remembers it; whether there was an answer."""
        self._record.made.append(call)
        invoked_s = perf_counter()
        try:
            answer: Answer | None = await self._ask(call)
        except grpc.aio.AioRpcError as error:
            if error.code() in NOTHING_DONE:
                return True
            answer = None if error.code() in OPEN else (reason_of(error),)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            answer = None  # the caller has cancelled its call
        operation = Operation(call, answer, invoked_s)
        if answer is not None:
            operation = replace(operation, returned_s=perf_counter())
        self._record.operations.append(operation)
        return answer is not None

    async def _ask(self, call: Call) -> Answer:
        record, stub = self._record, self._connection.redemptions
        match call:
            case Redeem():
                request = redemptions.RedeemCodeRequest(
                    code=record.code,
                    user_id=self._user_id(call.user),
                    order_id=call.order,
                    request_id=call.request,
                )
                if call.lock:
                    request.lock_token = record.tokens[call.lock][1]
                redeemed = await self._send(stub.RedeemCode, request)
                redemption_id = redeemed.redemption.redemption_id
                name = record.name_of(EventType.REDEEMED, redemption_id)
                record.redeemed[name] = redemption_id
                return "OK", name, redeemed.counts.code_redemption_count
            case Rollback():
                request = redemptions.RollbackRedemptionRequest(
                    redemption_id=record.redeemed[call.redemption], request_id=call.request
                )
                undone = await self._send(stub.RollbackRedemption, request)
                return "OK", undone.counts.code_redemption_count
            case Lock():
                request = redemptions.LockCodeRequest(
                    code=record.code, user_id=self._user_id(call.user), request_id=call.request
                )
                request.ttl.seconds = LOCK_TTL_S
                locked = await self._send(stub.LockCode, request)
                name = record.name_of(EventType.LOCKED, locked.lock.lock_id)
                record.tokens[name] = (call.user, locked.lock_token)
                return "OK", name
            case Unlock():
                request = redemptions.UnlockCodeRequest(
                    lock_token=record.tokens[call.lock][1],
                    request_id=f"unlock-{call.lock}",
                )
                await self._send(stub.UnlockCode, request)
                return ("OK",)
            case _:
                request = codes_pb.GetCodeRequest(code=record.code)
                found = await self._send(self._connection.codes.GetCode, request)
                return "OK", found.coupon_code.redemption_count

    def _user_id(self, user: str) -> str:
        # Of this code alone: a user holds only so many locks.
        return f"{user}-{self._record.code}"

    async def _send(self, rpc: Any, request: Any) -> Any:
        """Waits for the answer, or for a moment only: until a deadline, or by cancelling."""
        chance, impatience = self._chance, self._impatience
        if chance.random() >= impatience.share:
            return await rpc(request, timeout=30)
        patience_s = chance.random() * impatience.within_s
        if chance.random() < 0.5:
            return await rpc(request, timeout=patience_s)
        call = rpc(request, timeout=30)
        asyncio.get_running_loop().call_later(patience_s, call.cancel)
        return await call


async def use_at_once(
    records: Sequence[Record],
    connections: Sequence[Connection],
    seed: str,
    impatience: Impatience,
) -> None:
    """Several callers of each code, all at the same time."""
    callers: list[Any] = []
    for number, record in enumerate(records):
        for who in range(CALLERS):
            chance = random.Random(f"{seed}/{number}/{who}")
            caller = Caller(record, chance.choice(connections), chance, impatience)
            callers.append(caller.run(chance.randint(2, 4)))
    await asyncio.gather(*callers)


# --- checking -----------------------------------------------------------------------------------


def telling(record: Record, *, after_losses: bool) -> list[Recorded]:
    """The operations without those that were refused because someone else was at it.

    Who is redeeming, locking or unlocking at a moment holds a place for that moment, so that
    CODE_LOCKED tells nothing then, nor ever `after_losses`: after a lost connection to Redis or
    PostgreSQL a place may stay taken until its time is over.
    """

    def is_disturbed(it: Recorded) -> bool:
        return after_losses or any(
            not isinstance(other.call, Count)
            and other is not it
            and other.invoked_s <= it.returned_s
            and it.invoked_s <= other.returned_s
            for other in record.operations
        )

    return [it for it in record.operations if it.answer != ("CODE_LOCKED",) or not is_disturbed(it)]


def without_locks(operations: Iterable[Recorded]) -> list[Recorded]:
    """The redemptions alone, whatever became of the locks."""
    of_locks = {
        (reason,)
        for reason in ("CODE_LOCKED", "LOCK_EXPIRED", "LOCK_REQUIRED", "LOCK_TOKEN_MISMATCH")
    }
    return [
        replace(it, call=replace(it.call, lock="")) if isinstance(it.call, Redeem) else it
        for it in operations
        if not isinstance(it.call, (Lock, Unlock)) and it.answer not in of_locks
    ]


def contradiction(operations: Sequence[Recorded], rules: Rules) -> str:
    """Empty when the history could have happened one call after the other; else the history."""

    def after(code: Code, operation: Recorded) -> Code | None:
        call, answer = operation.call, operation.answer
        expected, then = perform(rules, code, call)
        if answer in (None, expected):
            return then
        if isinstance(call, Lock) and expected == ("OK", call.request):
            # The place of another attempt of the user that was not carried out, and its name.
            name = str(answer[-1])
            expected, then = perform(rules, code, replace(call, request=name))
            taken = answer == expected and then != code
            return answered_with(then, call, name) if taken else None
        return None

    order = longest_order(operations, Code(), after)
    if is_whole(order, operations):
        return ""
    code = Code()
    for it in order:
        _, code = perform(rules, code, it.call)
    began_s = min(it.invoked_s for it in operations)
    lines = [f"{rules}: no order explains the answers. # is the longest order that was found."]
    for it in sorted(operations, key=lambda it: it.invoked_s):
        place = f"#{order.index(it) + 1}" if it in order else ""
        begin_ms, end_ms = ((s - began_s) * 1000 for s in (it.invoked_s, it.returned_s))
        told = " ".join(map(str, it.answer)) if it.answer else "open"
        line = f"{place:>4} {begin_ms:8.1f} - {end_ms:8.1f} ms  {it.call} -> {told}"
        if it not in order and it.answer is not None:
            line += f"  (after these: {perform(rules, code, it.call)[0]})"
        lines.append(line)
    return "\n".join(lines)
