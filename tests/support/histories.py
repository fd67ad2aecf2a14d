"""Concurrent callers of one code, which record their calls and answers, and the check of these."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, Final
from uuid import UUID

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
from coupon_service.model.scopes import scope_of_book, scoped_event_id
from coupon_service.v1 import (
    assignment_service_pb2_grpc,
    coupon_code_service_pb2_grpc,
    redemption_service_pb2_grpc,
)

Recorded = Operation[Call, Answer]

UNKNOWN: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.CANCELLED,
}
"""Statuses after which the outcome is unknown."""

UNCHANGED: Final = {grpc.StatusCode.ABORTED, grpc.StatusCode.RESOURCE_EXHAUSTED}
"""Refusals that are independent of the code and changed nothing: the call is left out."""

OPERATIONS_MAX: Final = 19
"""Operations of callers. The final count of the code is one more."""

CALLERS: Final = 3
USERS: Final = ("ann", "bob")
ORDERS: Final = ("", "", "first", "second")
LOCK_TTL_S: Final = 600


class Connection:
    """The stubs of a separate channel to the service."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(
            address, options=[("grpc.use_local_subchannel_pool", 1)]
        )
        # types-grpcio has no types for stubs of grpc.aio.
        channel: Any = self.channel
        self.redemptions: Any = redemption_service_pb2_grpc.RedemptionServiceStub(channel)
        self.codes: Any = coupon_code_service_pb2_grpc.CouponCodeServiceStub(channel)
        self.assignments: Any = assignment_service_pb2_grpc.AssignmentServiceStub(channel)


@dataclass(slots=True)
class Impatience:
    """The share of calls that callers abandon, and the time after which they do at most."""

    share: float = 0.0
    within_s: float = 0.03


@dataclass(slots=True)
class Record:
    """All calls to one code, and the ids and tokens that they returned.

    `business_id`: what calls name, where others may have a code of this name.
    """

    code: str
    rules: Rules
    book_id: str
    business_id: str = ""
    operations: list[Recorded] = field(default_factory=list[Recorded])
    made: list[Call] = field(default_factory=list[Call])
    redeemed: dict[str, str] = field(default_factory=dict[str, str])
    """The ids of returned redemptions, by request."""
    tokens: dict[str, tuple[str, str]] = field(default_factory=dict[str, tuple[str, str]])
    """The holders and tokens of returned locks, by request."""

    @property
    def is_full(self) -> bool:
        """Whether it has as many operations as can be checked."""
        return len(self.made) >= OPERATIONS_MAX

    def name_of(self, event: EventType, row_id: str) -> str:
        """The request that created a redemption or lock, by its id."""
        requests = {it.request for it in self.made if isinstance(it, (Redeem, Lock))}
        return next(it for it in requests if self._id_of(event, it) == row_id)

    def _id_of(self, event: EventType, request: str) -> str:
        """The id of what this request created."""
        made = event_id(bucket_of(self.code), event, "anonymous", request, self.code)
        scope = scope_of_book(UUID(self.book_id))
        return str(scoped_event_id(made, scope) if scope else made)


class Caller:
    """Makes sequential calls."""

    def __init__(
        self, record: Record, connection: Connection, chance: random.Random, impatience: Impatience
    ) -> None:
        self._record = record
        self._connection = connection
        self._chance = chance
        self._impatience = impatience

    async def run(self, calls: int) -> None:
        """Make so many calls, not counting repeats of calls with an unknown outcome."""
        for _ in range(calls):
            await asyncio.sleep(self._chance.choice((0, 0, 0.002, 0.01)))
            call = self._next()
            while not self._record.is_full and not await self._make(call):
                if self._chance.random() < 0.3:
                    break

    def _next(self) -> Call:
        """The next call: a new one, a repeat of an earlier one, or one that reuses a request_id."""
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
        """Make and record a call; returns whether its outcome is known."""
        self._record.made.append(call)
        invoked_s = perf_counter()
        try:
            answer: Answer | None = await self._answer(call)
        except grpc.aio.AioRpcError as error:
            if error.code() in UNCHANGED:
                return True
            answer = None if error.code() in UNKNOWN else (reason_of(error),)
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and task.cancelling():
                raise
            answer = None  # the caller cancelled its call
        operation = Operation(call, answer, invoked_s)
        if answer is not None:
            operation = replace(operation, returned_s=perf_counter())
        self._record.operations.append(operation)
        return answer is not None

    async def _answer(self, call: Call) -> Answer:
        record, stub = self._record, self._connection.redemptions
        match call:
            case Redeem():
                request = redemptions.RedeemCodeRequest(
                    code=record.code,
                    user_id=self._user_id(call.user),
                    order_id=call.order,
                    request_id=call.request,
                    business_id=record.business_id,
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
                    code=record.code,
                    user_id=self._user_id(call.user),
                    request_id=call.request,
                    business_id=record.business_id,
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
                request = codes_pb.GetCodeRequest(code=record.code, business_id=record.business_id)
                found = await self._send(self._connection.codes.GetCode, request)
                return "OK", found.coupon_code.redemption_count

    def _user_id(self, user: str) -> str:
        # A user for each code, since the locks of a user are limited.
        return f"{user}-{self._record.code}"

    async def _send(self, rpc: Any, request: Any) -> Any:
        """Await the answer, or abandon the call early, by a deadline or by cancelling it."""
        chance, impatience = self._chance, self._impatience
        if chance.random() >= impatience.share:
            return await rpc(request, timeout=30)
        timeout_s = chance.random() * impatience.within_s
        if chance.random() < 0.5:
            return await rpc(request, timeout=timeout_s)
        call = rpc(request, timeout=30)
        asyncio.get_running_loop().call_later(timeout_s, call.cancel)
        return await call


async def use_concurrently(
    records: Sequence[Record],
    connections: Sequence[Connection],
    seed: str,
    impatience: Impatience,
) -> None:
    """Run several callers of each code, all concurrently."""
    callers: list[Any] = []
    for number, record in enumerate(records):
        for who in range(CALLERS):
            chance = random.Random(f"{seed}/{number}/{who}")
            caller = Caller(record, chance.choice(connections), chance, impatience)
            callers.append(caller.run(chance.randint(2, 4)))
    await asyncio.gather(*callers)


# --- checking -----------------------------------------------------------------------------------


def conclusive(record: Record, *, after_losses: bool) -> list[Recorded]:
    """The operations without refusals by CODE_LOCKED that a concurrent call explains.

    A call that redeems, locks or unlocks holds a permit while it runs, so a concurrent CODE_LOCKED
    proves nothing. Neither does any CODE_LOCKED `after_losses`: after a lost connection to Redis or
    PostgreSQL a permit may stay taken until it expires.
    """

    def is_explained(it: Recorded) -> bool:
        return after_losses or any(
            not isinstance(other.call, Count)
            and other is not it
            and other.invoked_s <= it.returned_s
            and it.invoked_s <= other.returned_s
            for other in record.operations
        )

    return [it for it in record.operations if it.answer != ("CODE_LOCKED",) or not is_explained(it)]


def without_locks(operations: Iterable[Recorded]) -> list[Recorded]:
    """The operations without locks: redemptions alone, without refusals that are about locks."""
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
    """Empty when the history is linearizable; otherwise the history as text."""

    def after(code: Code, operation: Recorded) -> Code | None:
        call, answer = operation.call, operation.answer
        expected, then = perform(rules, code, call)
        if answer in (None, expected):
            return then
        if isinstance(call, Lock) and expected == ("OK", call.request):
            # The lock of another attempt of this user, whose permit was taken over with its name.
            name = str(answer[-1])
            expected, then = perform(rules, code, replace(call, request=name))
            acquired = answer == expected and then != code
            return answered_with(then, call, name) if acquired else None
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
        position = f"#{order.index(it) + 1}" if it in order else ""
        begin_ms, end_ms = ((s - began_s) * 1000 for s in (it.invoked_s, it.returned_s))
        answer = " ".join(map(str, it.answer)) if it.answer else "unknown"
        line = f"{position:>4} {begin_ms:8.1f} - {end_ms:8.1f} ms  {it.call} -> {answer}"
        if it not in order and it.answer is not None:
            line += f"  (after these: {perform(rules, code, it.call)[0]})"
        lines.append(line)
    return "\n".join(lines)
