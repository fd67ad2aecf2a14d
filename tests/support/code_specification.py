"""One coupon code, used by one caller at a time: what each call is answered, and what it changes.

The sequential specification that histories are checked against. It shares nothing with the service.
Redemptions and locks are named by the request_id that made them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Answer = tuple[str, *tuple[object, ...]]
"""OK and what comes with it, or the reason why not."""


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits, 0 for none, and whether the code may or must be locked."""

    limit: int
    user_limit: int
    locks: Literal["OFF", "OPTIONAL", "REQUIRED"]


# --- what is asked ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redeem:
    """Answered with the redemption and the count. `lock`: the one whose token is shown."""

    request: str
    user: str
    order: str = ""
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Answered with the count."""

    request: str
    redemption: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Answered with the lock: the one that the user held before, if there was one."""

    request: str
    user: str


@dataclass(frozen=True, slots=True)
class Unlock:
    """Answered with nothing but OK."""

    lock: str


@dataclass(frozen=True, slots=True)
class Count:
    """Answered with how often the code is redeemed."""


@dataclass(frozen=True, slots=True)
class Redemptions:
    """Answered with the live redemptions."""


Call = Redeem | Rollback | Lock | Unlock | Count | Redemptions

# --- what is known ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redeemed:
    """An effect, and what a repeat is answered unless it was rolled back."""

    request: str
    user: str
    order: str
    count: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """An effect, and what a repeat is answered."""

    redemption: str
    request: str
    count: int


@dataclass(frozen=True, slots=True)
class Locked:
    """What a repeat is answered while the lock is held; an effect when the lock has the name of the
    request."""

    request: str
    user: str
    lock: str


@dataclass(frozen=True, slots=True)
class Code:
    """All that was done with the code. `held`: who holds a lock, and which."""

    redeemed: frozenset[Redeemed] = frozenset()
    rolled_back: frozenset[RolledBack] = frozenset()
    locked: frozenset[Locked] = frozenset()
    held: frozenset[tuple[str, str]] = frozenset()
    released: frozenset[str] = frozenset()

    @property
    def live(self) -> frozenset[Redeemed]:
        """Redemptions that count."""
        undone = {it.redemption for it in self.rolled_back}
        return frozenset(it for it in self.redeemed if it.request not in undone)

    def lock_of(self, user: str) -> str:
        """The lock that a user holds, if any."""
        return next((lock for holder, lock in self.held if holder == user), "")

    def without(self, lock: str) -> frozenset[tuple[str, str]]:
        """Who holds a lock when this one has ended."""
        return frozenset(it for it in self.held if it[1] != lock)


def perform(rules: Rules, code: Code, call: Call) -> tuple[Answer, Code]:
    """What a call is answered, and the code after it."""
    match call:
        case Redeem():
            return _redeem(rules, code, call)
        case Rollback():
            return _roll_back(code, call)
        case Lock():
            return _lock(rules, code, call)
        case Unlock():
            return _unlock(code, call)
        case Count():
            return ("OK", len(code.live)), code
        case Redemptions():
            return ("OK", frozenset(it.request for it in code.live)), code


def _redeem(rules: Rules, code: Code, call: Redeem) -> tuple[Answer, Code]:
    for past in code.redeemed:
        if past.request == call.request:
            if (past.user, past.order) != (call.user, call.order):
                return ("REQUEST_ID_REUSED",), code
            if past not in code.live:
                return ("ALREADY_ROLLED_BACK",), code
            return ("OK", past.request, past.count), code
    refusal = next(_redeem_refusals(rules, code, call), None)
    if refusal is not None:
        return (refusal,), code
    count = len(code.live) + 1
    redeemed = Redeemed(call.request, call.user, call.order, count)
    return ("OK", call.request, count), replace(
        code,
        redeemed=code.redeemed | {redeemed},
        held=code.without(call.lock or code.lock_of(call.user)),
    )


def _redeem_refusals(rules: Rules, code: Code, call: Redeem) -> Iterator[str]:
    if call.order and any(it.order == call.order for it in code.live):
        yield "ORDER_ALREADY_REDEEMED"
    yield from _used_up(rules, code, call.user)
    if not call.lock and rules.locks == "REQUIRED":
        yield "LOCK_REQUIRED"
    if any(it.lock == call.lock and it.user != call.user for it in code.locked):
        yield "LOCK_TOKEN_MISMATCH"
    if call.lock and (call.user, call.lock) not in code.held:
        yield "LOCK_EXPIRED"
    if not _has_room(rules, code, call.user):
        yield "CODE_LOCKED"


def _used_up(rules: Rules, code: Code, user: str) -> Iterator[str]:
    if rules.limit and len(code.live) >= rules.limit:
        yield "CODE_ALREADY_REDEEMED" if rules.limit == 1 else "CODE_LIMIT_EXCEEDED"
    if rules.user_limit and sum(it.user == user for it in code.live) >= rules.user_limit:
        yield "USER_LIMIT_EXCEEDED"


def _has_room(rules: Rules, code: Code, user: str) -> bool:
    """Live locks + redemptions ≤ limit, also with one of this user, who may hold a lock."""
    others = sum(holder != user for holder, _ in code.held)
    return not rules.limit or others + len(code.live) + 1 <= rules.limit


def _roll_back(code: Code, call: Rollback) -> tuple[Answer, Code]:
    for past in code.rolled_back:
        if past.redemption == call.redemption:
            if past.request != call.request:
                return ("ALREADY_ROLLED_BACK",), code
            return ("OK", past.count), code
    count = len(code.live) - 1
    undone = RolledBack(call.redemption, call.request, count)
    return ("OK", count), replace(code, rolled_back=code.rolled_back | {undone})


def _lock(rules: Rules, code: Code, call: Lock) -> tuple[Answer, Code]:
    for past in code.locked:
        if past.request == call.request:
            if past.user != call.user:
                return ("REQUEST_ID_REUSED",), code
            if (past.user, past.lock) not in code.held:
                return ("LOCK_EXPIRED",), code
            return ("OK", past.lock), code
    refusal = next(_used_up(rules, code, call.user), None)
    if refusal is not None:
        return (refusal,), code
    if held := code.lock_of(call.user):
        return ("OK", held), answered_with(code, call, held)
    if not _has_room(rules, code, call.user):
        return ("CODE_LOCKED",), code
    taken = replace(code, held=code.held | {(call.user, call.request)})
    return ("OK", call.request), answered_with(taken, call, call.request)


def answered_with(code: Code, call: Lock, lock: str) -> Code:
    """The code when the call was answered with this lock."""
    return replace(code, locked=code.locked | {Locked(call.request, call.user, lock)})


def _unlock(code: Code, call: Unlock) -> tuple[Answer, Code]:
    if any(lock == call.lock for _, lock in code.held):
        after = replace(code, held=code.without(call.lock), released=code.released | {call.lock})
        return ("OK",), after
    return ("OK",) if call.lock in code.released else ("LOCK_EXPIRED",), code
