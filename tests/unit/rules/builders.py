"""What decisions are made on, and what asks for them: rows of books, and commands of users."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from coupon_service.codes import bucket_of
from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    AmountOff,
    Assign,
    Assignment,
    AssignmentPolicy,
    AssignmentState,
    AssignRandom,
    Book,
    BookLimits,
    BookState,
    BookStats,
    Call,
    ChangeLock,
    Code,
    CodeState,
    Command,
    Done,
    Effects,
    Event,
    EventType,
    Lease,
    LeaseNeeded,
    Lock,
    LockClaims,
    LockPolicy,
    Money,
    Outcome,
    Redeem,
    Revoke,
    Rollback,
    State,
    SwitchCode,
    Unit,
    UserCounts,
    bucket_of_book,
    event_id,
    fingerprint,
)
from coupon_service.rules import decide

NOW = datetime(2026, 1, 15, 12, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)
MINUTE = timedelta(minutes=1)
BOOK_ID = UUID(int=1)

PLACE = Lease(places_taken=1)
"""A place on a code where nobody else has one."""

NOTHING = Effects(codes={}, assignments={}, users={}, totals={}, events=(), stats={})


# --- rows ---------------------------------------------------------------------------------------


def book(book_id: UUID = BOOK_ID, **changes: Any) -> Book:
    """A book that refuses nothing but the second use of a code. `changes` may name limits."""
    limits = {it.name: changes.pop(it.name) for it in fields(BookLimits) if it.name in changes}
    values: dict[str, Any] = {
        "state": BookState.ACTIVE,
        "discount": AmountOff(500),
        "currency_code": "EUR",
        "assignment_policy": AssignmentPolicy.BEARER,
        "lock_policy": LockPolicy.OFF,
    }
    return Book(
        book_id=book_id,
        business_id="business",
        name="book",
        create_time=NOW,
        update_time=NOW,
        limits=BookLimits(**limits),
        **{**values, **changes},
    )


@dataclass(slots=True)
class World:
    """All rows there are. Decisions are made on a copy; effects are written as the store does."""

    state: State
    now: datetime
    stats: dict[UUID, BookStats]
    ledger: list[Event]

    def __init__(self, *books: Book, codes: Iterable[str] = "ABC", now: datetime = NOW) -> None:
        """`codes` are new codes of the first book."""
        self.state = State(fences=list(range(999, 0, -1)))
        self.now = now
        self.stats = {}
        self.ledger = []
        for each in books or (book(),):
            self.state.books[each.book_id] = each
            self.state.totals[each.book_id] = 0
        first = next(iter(self.state.books))
        for code in codes:
            self.put(Code(code, first, CodeState.AVAILABLE, 0, 0))

    def put(self, row: Code | Assignment | UserCounts, user: str = "ann") -> None:
        """Stores a row as it is, whatever was there before."""
        if isinstance(row, Code):
            self.state.codes[row.code] = row
        elif isinstance(row, Assignment):
            self.state.assignments[(row.code, row.user_id)] = row
        else:
            self.state.users[(BOOK_ID, user)] = row

    def change_book(self, **changes: Any) -> None:
        """Gives the first book other rules; `changes` may name limits."""
        old = self.state.books[BOOK_ID]
        names = [it.name for it in fields(BookLimits) if it.name in changes]
        limits = replace(old.limits, **{name: changes.pop(name) for name in names})
        self.state.books[BOOK_ID] = replace(old, limits=limits, **changes)

    def code(self, code: str = "A") -> Code:
        """A code as it is now."""
        return self.state.codes[code]

    def link(self, user: str = "ann", code: str = "A") -> Assignment:
        """The link between a user and a code as it is now."""
        return self.state.assignments[(code, user)]

    # --- decisions ------------------------------------------------------------------------------

    def decide(self, *units: Unit) -> tuple[list[list[Outcome]], Effects]:
        """What the units come to, as one batch; nothing is written."""
        return decide(units, self._loaded(), self.now)

    def run(self, *units: Unit) -> list[list[Outcome]]:
        """Decides the units as one batch and writes the effects."""
        outcomes, effects = self.decide(*units)
        self.write(effects)
        return outcomes

    def batch(self, *commands: Command) -> list[Outcome]:
        """Decides commands of different callers as one batch and writes the effects."""
        return [outcome for (outcome,) in self.run(*(Unit((command,)) for command in commands))]

    def all_or_nothing(self, *commands: Command) -> list[Outcome]:
        """Decides commands as an atomic unit and writes the effects."""
        return self.run(Unit(commands, atomic=True))[0]

    def does(self, command: Command) -> Done:
        """Carries out a command that nothing speaks against."""
        (outcome,) = self.batch(command)
        assert isinstance(outcome, Done), repr(outcome)
        return outcome

    def refuses(self, command: Command) -> CouponServiceError:
        """Why a command is not carried out. Nothing at all is changed then."""
        ((error,),), effects = self.decide(Unit((command,)))
        assert isinstance(error, CouponServiceError), repr(error)
        assert effects == NOTHING
        return error

    def asks_for_a_lease(self, command: Command) -> bool:
        """Whether a command is to come again with a place. Nothing at all is changed then."""
        ((outcome,),), effects = self.decide(Unit((command,)))
        asked = isinstance(outcome, LeaseNeeded)
        assert asked is (effects == NOTHING)
        return asked

    def write(self, effects: Effects) -> None:
        """Writes effects. Rows have to be, before that, as the effects say they were."""
        state = self.state
        for code, (before, after) in effects.codes.items():
            assert state.codes[code] == before
            state.codes[code] = after
        for key, (link, new_link) in effects.assignments.items():
            assert state.assignments.get(key) == link
            state.assignments[key] = new_link
        for user, (counts, new_counts) in effects.users.items():
            assert state.users.get(user, UserCounts()) == counts
            state.users[user] = new_counts
        for book_id, (total, new_total) in effects.totals.items():
            assert state.totals[book_id] == total
            state.totals[book_id] = new_total
        for book_id, change in effects.stats.items():
            self.stats[book_id] = _sum(self.stats.get(book_id, BookStats()), change)
        for event in effects.events:
            self._append(event)

    def _append(self, event: Event) -> None:
        state = self.state
        assert event.event_id not in state.events, "the primary key of the ledger"
        self.ledger.append(event)
        state.events[event.event_id] = event
        if event.lock_id is not None:
            earlier = state.lock_events.get(event.lock_id, ())
            state.lock_events[event.lock_id] = (*earlier, event)
        if event.type is EventType.LOCKED and event.fence is not None:
            state.fences.remove(event.fence)
        order = (event.code or "", event.order_id or "")
        if event.order_id and event.type is EventType.REDEEMED:
            assert order not in state.orders, "one live redemption an order"
            state.orders[order] = event.event_id
        elif event.order_id:
            assert state.orders.pop(order) == event.redemption_id

    def copy(self) -> World:
        """Rows of their own, equal to these."""
        twin = copy(self)
        twin.state = self._loaded()
        twin.stats = self.stats.copy()
        twin.ledger = self.ledger.copy()
        return twin

    def _loaded(self) -> State:
        state = self.state
        return State(
            codes=state.codes.copy(),
            books=state.books.copy(),
            assignments=state.assignments.copy(),
            events=state.events.copy(),
            lock_events=state.lock_events.copy(),
            orders=state.orders.copy(),
            users=state.users.copy(),
            totals=state.totals.copy(),
            picks={book_id: picks.copy() for book_id, picks in state.picks.items()},
            picks_contended=state.picks_contended,
            fences=state.fences.copy(),
        )


def _sum(one: BookStats, other: BookStats) -> BookStats:
    names = [it.name for it in fields(BookStats)]
    return BookStats(**{name: getattr(one, name) + getattr(other, name) for name in names})


def active(
    user: str = "ann", code: str = "A", book_id: UUID = BOOK_ID, **changes: Any
) -> Assignment:
    """An assignment that was made long ago; the counts of the code do not know of it."""
    values: dict[str, Any] = {"state": AssignmentState.ACTIVE, "assign_time": NOW, **changes}
    return Assignment(code, user, book_id, **values)


# --- commands -----------------------------------------------------------------------------------


def call(request: str = "", caller: str = "shop", business: str = "") -> Call:
    """A call; without `request` the service makes a request_id up."""
    return Call(caller, request or uuid4().hex, "10.0.0.1:4711", "curl", business)


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
    """The command of LockCode, with a place on the code for a minute."""
    by = by or call()
    attempt = _id(code, EventType.LOCKED, by)
    return Lock(
        call=by,
        code=code,
        event_id=attempt,
        fingerprint=fingerprint(user, more.get("metadata")),
        user_id=user,
        **dict[str, Any]({"lock_id": attempt, "lease": PLACE, "expire_time": NOW + MINUTE, **more}),
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


def disable(code: str = "A", by: Call | None = None) -> SwitchCode:
    """The command of DisableCode."""
    return _switch(EventType.CODE_DISABLED, code, by or call())


def enable(code: str = "A", by: Call | None = None) -> SwitchCode:
    """The command of EnableCode."""
    return _switch(EventType.CODE_ENABLED, code, by or call())


def _switch(event: EventType, code: str, by: Call) -> SwitchCode:
    return SwitchCode(
        call=by,
        type=event,
        code=code,
        event_id=_id(code, event, by),
        fingerprint=fingerprint(),
    )
