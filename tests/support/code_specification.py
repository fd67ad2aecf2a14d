"""The sequential specification of one coupon code: the answer and the effect of each call.

Histories of concurrent calls are checked against it. It shares no code with the service.
Redemptions and locks are identified by the request_id that created them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

Answer = tuple[str, *tuple[object, ...]]
"""OK with its results, or the reason of a refusal."""


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits, 0 for none, and the lock policy."""

    limit: int
    user_limit: int
    locks: Literal["OFF", "OPTIONAL", "REQUIRED"]


# --- calls --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redeem:
    """Returns the redemption and the count. `lock`: the lock whose token is sent."""

    request: str
    user: str
    order: str = ""
    lock: str = ""


@dataclass(frozen=True, slots=True)
class Rollback:
    """Returns the count."""

    request: str
    redemption: str


@dataclass(frozen=True, slots=True)
class Lock:
    """Returns the lock: that which the user already held, if any."""

    request: str
    user: str


@dataclass(frozen=True, slots=True)
class Unlock:
    """Returns OK only."""

    lock: str


@dataclass(frozen=True, slots=True)
class Count:
    """Returns the number of live redemptions."""


@dataclass(frozen=True, slots=True)
class Redemptions:
    """Returns the live redemptions."""


Call = Redeem | Rollback | Lock | Unlock | Count | Redemptions

# --- state --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redeemed:
    """A redemption, and the answer to a repeat unless it was rolled back."""

    request: str
    user: str
    order: str
    count: int


@dataclass(frozen=True, slots=True)
class RolledBack:
    """A rollback, and the answer to a repeat."""

    redemption: str
    request: str
    count: int


@dataclass(frozen=True, slots=True)
class Locked:
    """The answer to a repeat while the lock is held. The request created the lock if the two have
    the same name."""

    request: str
    user: str
    lock: str


@dataclass(frozen=True, slots=True)
class Code:
    """The history of the code. `held`: the user and the name of each live lock."""

    redeemed: frozenset[Redeemed] = frozenset()
    rolled_back: frozenset[RolledBack] = frozenset()
    locked: frozenset[Locked] = frozenset()
    held: frozenset[tuple[str, str]] = frozenset()
    released: frozenset[str] = frozenset()

    @property
    def live(self) -> frozenset[Redeemed]:
        """Redemptions that were not rolled back."""
        undone = {it.redemption for it in self.rolled_back}
        return frozenset(it for it in self.redeemed if it.request not in undone)

    def lock_of(self, user: str) -> str:
        """The lock that a user holds; empty for none."""
        return next((lock for holder, lock in self.held if holder == user), "")

    def without(self, lock: str) -> frozenset[tuple[str, str]]:
        """The live locks without this one."""
        return frozenset(it for it in self.held if it[1] != lock)


def perform(rules: Rules, code: Code, call: Call) -> tuple[Answer, Code]:
    """The answer to a call, and the code after it."""
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
    if not _has_permit(rules, code, call.user):
        yield "CODE_LOCKED"


def _used_up(rules: Rules, code: Code, user: str) -> Iterator[str]:
    if rules.limit and len(code.live) >= rules.limit:
        yield "CODE_ALREADY_REDEEMED" if rules.limit == 1 else "CODE_LIMIT_EXCEEDED"
    if rules.user_limit and sum(it.user == user for it in code.live) >= rules.user_limit:
        yield "USER_LIMIT_EXCEEDED"


def _has_permit(rules: Rules, code: Code, user: str) -> bool:
    """Whether live locks + redemptions ≤ limit holds with one more of this user, or with the lock
    that the user already holds."""
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
    if not _has_permit(rules, code, call.user):
        return ("CODE_LOCKED",), code
    acquired = replace(code, held=code.held | {(call.user, call.request)})
    return ("OK", call.request), answered_with(acquired, call, call.request)


def answered_with(code: Code, call: Lock, lock: str) -> Code:
    """The code after the call was answered with this lock."""
    return replace(code, locked=code.locked | {Locked(call.request, call.user, lock)})


def _unlock(code: Code, call: Unlock) -> tuple[Answer, Code]:
    if any(lock == call.lock for _, lock in code.held):
        after = replace(code, held=code.without(call.lock), released=code.released | {call.lock})
        return ("OK",), after
    return ("OK",) if call.lock in code.released else ("LOCK_EXPIRED",), code
