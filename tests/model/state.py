"""What the plain model of the service remembers, and the messages in which it is shown.

Messages are dicts, enums are names without their prefix, times are milliseconds since 1970.
Whatever can be counted is counted when it is asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

Message = dict[str, Any]
USES = "max_redemptions_per_code"

PAST = "\0"
"""Between a code and the CLOSED book that had it, in the name that it has here since."""


class Unknown:
    """Equals the first value it is compared with, and from then on nothing else."""

    value: Any = None

    def __eq__(self, other: object) -> bool:
        self.value = other if self.value is None else self.value
        return bool(self.value == other)

    __hash__ = object.__hash__

    def __deepcopy__(self, _: object) -> Unknown:
        return self  # the copy of a world learns the same


class Refusal(Exception):
    """The call is refused."""

    def __init__(self, reason: str, **metadata: object) -> None:
        self.error: Message = {
            "reason": reason,
            "metadata": {
                key: it if isinstance(it, Unknown) else str(it) for key, it in metadata.items()
            },
        }


def taken_off(redemption: Message) -> int:
    """What a redemption takes off, in minor units."""
    discount: Message | None = redemption["discount"]
    return discount["amount_minor"] if discount else 0


@dataclass(frozen=True)
class Token:
    """The token of the lock with this number, for as long as it said; -1: of no lock."""

    lock: int
    expire: int = 0


@dataclass(frozen=True, kw_only=True)
class Item:
    """What is to be redeemed."""

    code: str
    user: str
    book_id: str = ""
    order_id: str = ""
    amount: Message | None = None
    token: Token | None = None
    metadata: Message | None = None
    request_id: str = ""


@dataclass
class Code:
    """A code and which upload or generation made it. `next_book`: that got it after its own."""

    code: str
    book_id: str
    source: tuple[str, str]
    disabled: bool = False
    spelling: str = ""
    terms: Message = field(default_factory=dict[str, Any])
    next_book: str = ""


@dataclass
class Assignment:
    """A user and a code; `state` is empty when the code was never assigned to the user."""

    state: str = ""
    redemptions: int = 0
    given: Message = field(default_factory=dict[str, Any])


@dataclass
class Lock:
    """A lock as its message shows it, and what the message does not show."""

    message: Message
    end: str = ""
    extensions: int = 0

    @property
    def whose(self) -> str:
        """The user who took it, also when that was erased since."""
        return self.message["_user"]

    @property
    def erased(self) -> bool:
        """Whether the user was erased."""
        return self.whose != self.message["user_id"]


@dataclass
class ModelState:
    """Everything there is. `grace`: how long a lock keeps others out when its time is over;
    `reuses`: whether books get codes of CLOSED ones."""

    now: int
    grace: int
    ttl_default: int
    ttl_max: int
    extensions_max: int
    locks_per_user_max: int
    books: dict[str, Message] = field(default_factory=dict[str, Message])
    codes: dict[str, Code] = field(default_factory=dict[str, Code])
    assignments: dict[tuple[str, str], Assignment] = field(
        default_factory=dict[tuple[str, str], Assignment]
    )
    locks: list[Lock] = field(default_factory=list[Lock])
    tokens: dict[Token, Unknown] = field(default_factory=dict[Token, Unknown])
    created: Message | None = None
    redemptions: list[Message] = field(default_factory=list[Message])
    ledger: list[Message] = field(default_factory=list[Message])
    done: dict[object, tuple[object, Callable[[Any], Message]]] = field(
        default_factory=dict[object, Any]
    )
    order_currencies: dict[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])
    end_user: str = ""
    reuses: bool = False
    erased_users: dict[str, str] = field(default_factory=dict[str, str])
    """By pseudonym who it was."""
    about: dict[object, set[str]] = field(default_factory=dict[object, set[str]])
    """The users of each attempt."""
    forgotten: set[object] = field(default_factory=set[object])
    """Attempts of users who were erased since."""

    def is_of(self, owner: str, user: str) -> bool:
        """Whether it is the user, or who that was before it was erased."""
        return user in (owner, self.erased_users.get(owner))

    def redeemed_by(self, code: str, user: str) -> int:
        """How often the user has redeemed the code, where that was counted."""
        found = self.assignments.items()
        return sum(
            it.redemptions for (of, owner), it in found if of == code and self.is_of(owner, user)
        )

    @contextmanager
    def called_by(self, user: str) -> Generator[None]:
        """Calls are those of this end user; of none: of a service."""
        self.end_user = user
        try:
            yield
        finally:
            self.end_user = ""

    @property
    def caller(self) -> str:
        """Who calls."""
        return self.end_user or "anonymous"

    # --- codes of CLOSED books ------------------------------------------------------------------

    def key(self, code: str, book_id: str) -> str:
        """What a code of the book is called here."""
        past = f"{code}{PAST}{book_id}"
        return past if past in self.codes else code

    def kept(self, code: str) -> Code | None:
        """The code, where its book keeps it."""
        found = self.codes.get(code)
        closed = found and self.books[found.book_id]["state"] == "CLOSED"
        return None if self.reuses and closed else found

    def given_away(self, book_id: str, codes: Collection[str]) -> Message:
        """What the ledger says of those of the codes that the book has and others had."""
        mine = [it for it in self.codes.values() if it.next_book == book_id and it.code in codes]
        return {"reused": dict(Counter(it.book_id for it in mine))} if mine else {}

    def give_away(self, code: str, book_id: str) -> None:
        """The code of a CLOSED book is to be another book's: all about it gets another name."""
        before = self.codes[code]
        before.next_book = book_id
        self._rename(code, f"{code}{PAST}{before.book_id}")

    def delete(self, code: str) -> None:
        """The code is no more, or that of the CLOSED book again that had it before."""
        book_id = self.codes.pop(code).book_id
        for key, it in list(self.codes.items()):
            if it.code == code and it.next_book == book_id:
                it.next_book = ""
                self._rename(key, code)

    def _rename(self, code: str, name: str) -> None:
        self.codes[name] = self.codes.pop(code)
        for of, user in list(self.assignments):
            if of == code:
                self.assignments[name, user] = self.assignments.pop((of, user))
        for message in (*self.redemptions, *(it.message for it in self.locks)):
            if message["code"] == code:
                message["code"] = name

    # --- what is counted ------------------------------------------------------------------------

    def live(self, **which: object) -> list[Message]:
        """Redemptions that were not rolled back."""
        wanted = {"state": "SUCCEEDED", **which}
        return [it for it in self.redemptions if all(it[key] == wanted[key] for key in wanted)]

    def assignment_count(self, code: str = "", book_id: str = "", user: str = "") -> int:
        """Assignments that were not revoked."""
        return sum(
            assignment.state in ("ACTIVE", "REDEEMED")
            and code in ("", of)
            and (not user or self.is_of(owner, user))
            and book_id in ("", self.codes[of].book_id)
            for (of, owner), assignment in self.assignments.items()
        )

    def book_of(self, code: str) -> Message:
        """The book of a code, with what the code says for itself in its place."""
        of = self.codes[code]
        book, terms = self.books[of.book_id], of.terms
        if not terms:
            return book
        uses = terms.get("max_redemptions") or book["limits"][USES]
        discount = terms.get("discount") or book["discount"]
        return {**book, "limits": {**book["limits"], USES: uses}, "discount": discount}

    def end_of(self, code: str) -> int:
        """When the code's own window ends; 0: never."""
        return self.codes[code].terms.get("end_time", 0)

    def left(self, code: str) -> int | None:
        """Redemptions that are left of a code; None without a limit."""
        uses: int = self.book_of(code)["limits"][USES]
        return uses - len(self.live(code=code)) if uses else None

    def state(self, code: str) -> str:
        """The stored state of a code."""
        if self.codes[code].disabled:
            return "DISABLED"
        if self.left(code) == 0:
            return "REDEEMED"
        return "ASSIGNED" if self.assignment_count(code) else "AVAILABLE"

    def permits(self, code: str) -> list[Lock]:
        """Locks that keep others out, those whose time was over just now included."""
        return [
            it
            for it in self.locks
            if it.message["code"] == code
            and not it.end
            and it.message["expire_time"] + self.grace > self.now
        ]

    def locking(self, book: Message) -> bool:
        """Whether redemptions mind locks: also when locking was switched off a moment ago."""
        return book["lock_policy"] != "OFF" or self.now < book.get("_locks_until", 0)

    def lock_state(self, lock: Lock) -> str:
        """HELD, or how it ended."""
        return lock.end or ("HELD" if self.now < lock.message["expire_time"] else "EXPIRED")

    # --- messages -------------------------------------------------------------------------------

    def book_message(self, book_id: str) -> Message:
        """A book as it is now."""
        book = self.books[book_id]
        state = book["state"]
        if state in ("ACTIVE", "PAUSED") and 0 < book["end_time"] <= self.now:
            state = "EXPIRED"
        elif state == "ACTIVE" and self.now < book["start_time"]:
            state = "SCHEDULED"
        elif state == "ACTIVE" and 0 < book["limits"]["max_redemptions"] <= len(
            self.live(book_id=book_id)
        ):
            state = "EXHAUSTED"
        return {**book, "effective_state": state, "etag": f"v{book['etag']}"}

    def code_message(self, code: str, *, effective: bool = True, locks: bool = False) -> Message:
        """A code as it is now; `locks`: whether its effective state tells of them."""
        book = self.book_of(code)
        return {
            "code": code,
            "terms": self.codes[code].terms,
            "display_code": self.codes[code].spelling or code,
            "book_id": book["book_id"],
            "state": self.state(code),
            "effective_state": effective and self.effective_state(code, locks=locks),
            "redemption_count": len(self.live(code=code)),
            "max_redemptions": book["limits"][USES],
            "assignment_count": self.assignment_count(code),
        }

    def effective_state(self, code: str, *, locks: bool, end: int = 0) -> str:
        """The state, or EXPIRED or LOCKED; `end`: of the user's assignment."""
        book, state, left = self.book_of(code), self.state(code), self.left(code)
        if state in ("REDEEMED", "DISABLED"):
            return state
        if any(0 < it <= self.now for it in (book["end_time"], self.end_of(code), end)):
            return "EXPIRED"
        locking = locks and left is not None and self.locking(book)
        return "LOCKED" if locking and len(self.permits(code)) >= (left or 0) else state

    def assignment_message(self, code: str, user: str) -> Message:
        """An assignment as it is now."""
        assignment = self.assignments[code, user]
        return {
            **assignment.given,
            "state": assignment.state,
            "redemption_count": assignment.redemptions,
        }

    def coupon_messages(self, user: str) -> list[Message]:
        """All that is or was a user's, newest first."""
        found: list[Message] = []
        for (code, owner), assignment in self.assignments.items():
            if owner == user and assignment.given:
                state = {"REDEEMED": "REDEEMED", "REVOKED": ""}.get(assignment.state)
                if state is None:
                    end = assignment.given["expire_time"]
                    state = self.effective_state(code, locks=True, end=end)
                message = self.assignment_message(code, user)
                terms = self.codes[code].terms
                found.append({"assignment": message, "effective_state": state, "terms": terms})
        key = ("assign_time", "code")
        return sorted(found, key=lambda it: [it["assignment"][k] for k in key], reverse=True)

    def assignment_messages(self, book_id: str, state: str = "") -> list[Message]:
        """Who got the codes of a book, newest first."""
        found = [
            self.assignment_message(code, user)
            for (code, user), it in self.assignments.items()
            if it.given and it.given["book_id"] == book_id and state in ("", it.state)
        ]
        key = ("assign_time", "code", "user_id")
        return sorted(found, key=lambda it: [it[k] for k in key], reverse=True)

    def counts(self, code: str, user: str) -> Message:
        """How often a code was redeemed by now."""
        uses = self.book_of(code)["limits"][USES]
        assignment = self.assignments.get((code, user), Assignment())
        return {
            "code_redemption_count": len(self.live(code=code)),
            "code_max_redemptions": uses,
            "used_up": self.left(code) == 0,
            "user_code_redemption_count": assignment.redemptions,
        }

    def lock_message(self, number: int) -> Message:
        """A lock as it is now."""
        lock = self.locks[number]
        return {**lock.message, "state": self.lock_state(lock)}

    def held_messages(self, **whose: str) -> list[Message]:
        """Live locks, the next to expire first."""
        held = (self.lock_message(number) for number in range(len(self.locks)))
        ((key, value),) = whose.items()
        found = [it for it in held if it["state"] == "HELD" and it[key] == value]
        order = ("expire_time", "code", "book_id", "user_id")
        return sorted(found, key=lambda it: [*(it[k] for k in order), it["lock_id"].value])

    def redemption_messages(self, **which: object) -> list[Message]:
        """Redemptions, newest first."""
        found = [it for it in self.redemptions if all(it[key] == which[key] for key in which)]
        return sorted(
            found, key=lambda it: (it["redeem_time"], it["redemption_id"].value), reverse=True
        )

    def stats(self, book_id: str) -> Message:
        """The counts of a book."""
        states = [self.state(key) for key, it in self.codes.items() if it.book_id == book_id]
        mine = self.redemption_messages(book_id=book_id)
        given = list(map(taken_off, self.live(book_id=book_id)))
        book = self.books[book_id]
        own = any(it.terms for it in self.codes.values() if it.book_id == book_id)
        money = {"amount_minor": min(sum(given), 2**63 - 1), "currency_code": book["currency_code"]}
        return {
            "book_id": book_id,
            "code_count": len(states),
            **{
                f"{it.lower()}_count": states.count(it)
                for it in ("AVAILABLE", "ASSIGNED", "REDEEMED", "DISABLED")
            },
            "assignment_count": self.assignment_count(book_id=book_id),
            "redemption_count": len(given),
            "rollback_count": len(mine) - len(given),
            "discount_given": None if "benefit" in book["discount"] and not own else money,
        }
