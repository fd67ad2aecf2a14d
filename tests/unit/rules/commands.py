"""What decisions are asked for: the commands of the service, as rpc makes them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from unit.rules.world import BOOK_ID, MINUTE, NOW, PERMIT, World

from coupon_service.model import (
    Assign,
    AssignRandom,
    Call,
    ChangeLock,
    Event,
    EventType,
    Lease,
    Lock,
    LockClaims,
    Money,
    Redeem,
    ReturnToPool,
    Revoke,
    Rollback,
    SetCodeEnabled,
    Transfer,
    bucket_of_book,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of


def call(request: str = "", caller: str = "shop", business: str = "") -> Call:
    """A call; without `request` the service makes a request_id up."""
    return Call(caller, request or uuid4().hex, "10.0.0.1:4711", "curl", business)


def user_call(user: str = "ann", request: str = "") -> Call:
    """A call of an end user."""
    return replace(call(request, user, "business"), end_user=True)


def recorded(command: Any, type_: EventType, **fields: Any) -> Event:
    """The row of the ledger about what a command of call("r1") did to A for ann; `fields` say what
    else it says, and what is otherwise.
    """
    usual: dict[str, Any] = {
        "event_id": command.event_id,
        "event_time": NOW,
        "book_id": BOOK_ID,
        "code": "A",
        "user_id": "ann",
        "caller": "shop",
        "peer": "10.0.0.1:4711",
        "user_agent": "curl",
        "request_id": "r1",
        "fingerprint": command.fingerprint,
    }
    return Event(type=type_, **usual | fields)


def _id(code: str, event: EventType, by: Call) -> UUID:
    return event_id(bucket_of(code), event, by.caller, by.request_id, code)


def eur(amount_minor: int) -> Money:
    """Cents."""
    return Money(amount_minor, "EUR")


def redeem(
    code: str = "A",
    user: str = "ann",
    by: Call | None = None,
    *,
    order: str = "",
    amount: Money | None = None,
    lock: LockClaims | None = None,
    **more: Any,
) -> Redeem:
    """The command of RedeemCode."""
    by = by or call()
    lease = Lease() if lock else None
    return Redeem(
        call=by,
        code=code,
        event_id=_id(code, EventType.REDEEMED, by),
        fingerprint=fingerprint(user, order, amount, more.get("metadata")),
        user_id=user,
        order_id=order,
        order_amount=amount,
        lock=lock,
        **dict[str, Any]({"lease": lease, **more}),
    )


def rollback(redemption: Event, by: Call | None = None, metadata: str | None = None) -> Rollback:
    """The command of RollbackRedemption: its id is the same for everybody."""
    code = redemption.code or ""
    return Rollback(
        call=by or call(),
        code=code,
        event_id=event_id(bucket_of(code), EventType.ROLLED_BACK, redemption.event_id),
        fingerprint=fingerprint(metadata),
        user_id=redemption.user_id or "",
        redemption=redemption,
        metadata=metadata,
    )


def lock(code: str = "A", user: str = "ann", by: Call | None = None, **more: Any) -> Lock:
    """The command of LockCode, with a permit on the code for a minute."""
    by = by or call()
    attempt = _id(code, EventType.LOCKED, by)
    return Lock(
        call=by,
        code=code,
        event_id=attempt,
        fingerprint=fingerprint(user, more.get("metadata")),
        user_id=user,
        **dict[str, Any](
            {"lock_id": attempt, "lease": PERMIT, "expire_time": NOW + MINUTE, **more}
        ),
    )


def token(locked: Event, expire_time: datetime | None = None) -> LockClaims:
    """What the token of a lock proves; `expire_time` after an extension."""
    expires = expire_time or locked.expire_time
    assert expires is not None
    return LockClaims(
        lock_id=locked.event_id,
        code=locked.code or "",
        book_id=locked.book_id,
        user_id=locked.user_id or "",
        fence=locked.fence or 0,
        expire_ms=round(expires.timestamp() * 1000),
    )


def extend(
    locked: Event, expire_time: datetime, by: Call | None = None, extensions_max: int = 9
) -> ChangeLock:
    """The command of ExtendLock."""
    by = by or call()
    changed = _change(locked, EventType.LOCK_EXTENDED, by)
    attempt = event_id(
        bucket_of(changed.code),
        EventType.LOCK_EXTENDED,
        by.caller,
        by.request_id,
        changed.lock_id,
    )
    return replace(
        changed, event_id=attempt, expire_time=expire_time, extensions_max=extensions_max
    )


def unlock(locked: Event, by: Call | None = None) -> ChangeLock:
    """The command of UnlockCode: its id is the same for everybody."""
    return _change(locked, EventType.UNLOCKED, by or call())


def expire(locked: Event) -> ChangeLock:
    """The command of the sweeper."""
    return _change(locked, EventType.LOCK_EXPIRED, call("lock-expired", "sweeper"))


def _change(locked: Event, event: EventType, by: Call) -> ChangeLock:
    code = locked.code or ""
    return ChangeLock(
        call=by,
        type=event,
        code=code,
        book_id=locked.book_id,
        event_id=event_id(bucket_of(code), event, locked.event_id),
        fingerprint=fingerprint(locked.event_id),
        user_id=locked.user_id or "",
        lock_id=locked.event_id,
    )


def assign(code: str = "A", user: str = "ann", by: Call | None = None, **more: Any) -> Assign:
    """The command of AssignCode."""
    by = by or call()
    return Assign(
        call=by,
        code=code,
        event_id=_id(code, EventType.ASSIGNED, by),
        fingerprint=fingerprint(user, more.get("metadata")),
        user_id=user,
        **more,
    )


def assign_random(
    user: str = "ann", by: Call | None = None, book_id: UUID = BOOK_ID, **more: Any
) -> AssignRandom:
    """The command of AssignRandomCode."""
    by = by or call()
    bucket = bucket_of_book(book_id)
    return AssignRandom(
        call=by,
        event_id=event_id(bucket, EventType.ASSIGNED, by.caller, by.request_id, book_id, user),
        fingerprint=fingerprint(more.get("metadata")),
        user_id=user,
        book_id=book_id,
        **more,
    )


def revoke(code: str = "A", user: str = "ann", by: Call | None = None) -> Revoke:
    """The command of RevokeAssignment."""
    by = by or call()
    attempt = _id(code, EventType.REVOKED, by)
    return Revoke(call=by, code=code, event_id=attempt, fingerprint=fingerprint(user), user_id=user)


def transfer(
    code: str = "A",
    giver: str = "ann",
    receiver: str = "bob",
    by: Call | None = None,
    **more: Any,
) -> Transfer:
    """The command of TransferAssignment."""
    by = by or call()
    return Transfer(
        call=by,
        code=code,
        event_id=_id(code, EventType.ASSIGNMENT_TRANSFERRED, by),
        fingerprint=fingerprint(giver, receiver, more.get("metadata")),
        from_user_id=giver,
        to_user_id=receiver,
        **more,
    )


def return_to_pool(world: World, code: str = "A", user: str = "ann") -> ReturnToPool:
    """The command of the sweeper, of this moment: locks live for 15 minutes at most, and are kept
    for 5 seconds more."""
    given = world.assignment(user, code)
    assert given.assign_time is not None
    attempt = event_id(
        bucket_of(code), EventType.ASSIGNMENT_EXPIRED, code, user, given.assign_time.isoformat()
    )
    return ReturnToPool(
        call=Call("sweeper", "assignment-expired"),
        code=code,
        event_id=attempt,
        fingerprint=fingerprint(attempt),
        user_id=user,
        book_id=given.book_id,
        assign_time=given.assign_time,
        ended_by=world.now - 15 * MINUTE,
        unlocked_by=world.now - MINUTE / 12,
    )


def disable(code: str = "A", by: Call | None = None) -> SetCodeEnabled:
    """The command of DisableCode."""
    return _set_enabled(EventType.CODE_DISABLED, code, by or call())


def enable(code: str = "A", by: Call | None = None) -> SetCodeEnabled:
    """The command of EnableCode."""
    return _set_enabled(EventType.CODE_ENABLED, code, by or call())


def _set_enabled(event: EventType, code: str, by: Call) -> SetCodeEnabled:
    return SetCodeEnabled(
        call=by,
        type=event,
        code=code,
        event_id=_id(code, event, by),
        fingerprint=fingerprint(),
    )
