"""The service as plain Python: what each call is answered, and what it leaves behind.

Written from the contract, one call after the other, with no code of the service. Here: locks and
redemptions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from model.assignments import iso, reached, used_up
from model.opening_hours import closed
from model.orders import Orders
from model.periods import used_up as period_used_up
from model.state import (
    USES,
    Assignment,
    Item,
    Lock,
    Message,
    Refusal,
    Token,
    Unknown,
)

PERMIT = "needs a permit in Redis"

UNUSABLE = {
    "CODE_NOT_STARTED",
    "BOOK_NOT_ACTIVE",
    "BOOK_NOT_STARTED",
    "BOOK_EXPIRED",
    "CODE_DISABLED",
    "CODE_EXPIRED",
    "CODE_NOT_ASSIGNED_TO_USER",
}
USED_UP = {"CODE_ALREADY_REDEEMED", "CODE_LIMIT_EXCEEDED"}
"""Reasons that end users are not told, the second ones unless they have to do with the code."""

MOMENT_MS = 8_000
"""How long a permit lasts that a redemption without a token takes: a deadline and a statement."""


@dataclass(slots=True)
class Attempts:
    """Redemptions of one code in one call, without a lock: all so far, and those in vain."""

    all: int = 0
    failed: int = 0


class World(Orders):
    """Everything there is, and every call that changes it."""

    # --- why not --------------------------------------------------------------------------------

    def why_not(self, code: str, user: str, book: Message, item: Item | None) -> Iterator[Refusal]:
        """Why this user cannot redeem (`item`) or lock (None) the code now, the first first."""
        limits, assignment = book["limits"], self.assignments.get((code, user))
        time = self.now  # by which ends are judged
        if item and item.token and not any(self._token_refusals(item, book)):
            time = self.locks[item.token.lock].message["create_time"]
        yield from self._over(book, time)
        yield from self._not_started(book)
        yield from self._own_end(code, time)
        yield from self._own_start(code)
        if self.codes[code].disabled:
            yield Refusal("CODE_DISABLED")
        for it in self._redeemed_for(item)[:1] if item and item.order_id else ():
            yield Refusal("ORDER_ALREADY_REDEEMED", redemption_id=it["redemption_id"])
        if self.left(code) == 0:
            yield used_up(limits[USES])
        has_it = assignment is not None and assignment.state in ("ACTIVE", "REDEEMED")
        if not has_it and book["assignment_policy"] == "REQUIRED":
            yield Refusal("CODE_NOT_ASSIGNED_TO_USER")
        yield from self._validity_over(assignment, time)
        yield from closed(book, self.now, time)
        yield from reached(
            "max_redemptions_per_user_per_code", limits, self.redeemed_by(code, user)
        )
        mine = len(self.live(book_id=book["book_id"], _user=user))
        yield from reached("max_redemptions_per_user", limits, mine)
        if 0 < limits["max_redemptions"] <= len(self.live(book_id=book["book_id"])):
            yield Refusal("BOOK_LIMIT_EXCEEDED", limit=limits["max_redemptions"])
        yield from period_used_up(book, user, self.now, self.live)
        yield from self.budget_refusals(item, book)
        if item is not None:
            if book["order_policy"] != "INDEPENDENT":
                yield from self.coupon_refusals(item, book)
            yield from self._order_refusals(item, book)
            yield from self._token_refusals(item, book)

    def hides(self, code: str, user: str, book: Message, item: Item | None) -> bool:
        """Whether the code does not exist for the end user who calls."""
        reasons = {it.error["reason"] for it in self.why_not(code, user, book, item)}
        assignment = self.assignments.get((code, user), Assignment())
        has_it = assignment.state in ("ACTIVE", "REDEEMED") or assignment.redemptions > 0
        has_it |= "ORDER_ALREADY_REDEEMED" in reasons
        return bool(self.end_user and reasons & (UNUSABLE if has_it else UNUSABLE | USED_UP))

    def _redeemed_for(self, item: Item) -> list[Message]:
        """Live redemptions for the order, those of the user first; orders of end users are their
        own."""
        live = self.live(code=item.code, _order=item.order_id)
        mine = [it for it in live if it["_user"] == item.user]
        return mine + [it for it in live if not (self.end_user or it["_own_order"])]

    def _order_refusals(self, item: Item, book: Message) -> Iterator[Refusal]:
        currency, minimum = book["currency_code"], book["min_order_amount_minor"]
        if "tiers" in book["discount"]:
            minimum = max(minimum, book["discount"]["tiers"]["tiers"][0]["from_amount_minor"])
        if item.amount and currency and item.amount["currency_code"] != currency:
            yield Refusal("CURRENCY_MISMATCH", currency_code=currency)
        if minimum and (not item.amount or item.amount["amount_minor"] < minimum):
            yield Refusal("ORDER_BELOW_MINIMUM", minimum_minor=minimum, currency_code=currency)

    def _token_refusals(self, item: Item, book: Message) -> Iterator[Refusal]:
        token = item.token
        if token is None:
            if book["lock_policy"] == "REQUIRED":
                yield Refusal("LOCK_REQUIRED")
            return
        lock = self.locks[token.lock] if token.lock >= 0 else None
        if not lock or (lock.message["code"], lock.whose) != (item.code, item.user):
            yield Refusal("LOCK_TOKEN_MISMATCH")
        elif self.lock_state(lock) != "HELD" or self.now >= token.expire:
            yield Refusal("LOCK_EXPIRED")

    def _others(self, code: str, user: str) -> list[Lock]:
        return [it for it in self.permits(code) if it.message["user_id"] != user]

    def _own(self, code: str, user: str) -> Lock | None:
        return next((it for it in self.permits(code) if it.message["user_id"] == user), None)

    def _locked(self, others: Sequence[Lock], attempts: int = 0) -> Refusal:
        ends = [it.message["expire_time"] + self.grace - self.now for it in others]
        ends += [MOMENT_MS] * attempts
        return Refusal("CODE_LOCKED", retry_after_ms=min(ends, default=0))

    # --- locks ----------------------------------------------------------------------------------

    def _ttl(self, requested: int, book: Message) -> int:
        ttl = requested or book["default_lock_ttl"] or self.ttl_default
        return min(ttl, book["max_lock_ttl"] or self.ttl_max, self.ttl_max)

    def lock(
        self,
        code: str,
        book_id: str,
        user: str,
        ttl: int,
        token: Token | None,
        metadata: Message,
        request_id: str,
    ) -> Message:
        """LockCode; `token`: of the lock of another user that goes over."""
        if token and token.lock < 0:
            raise Refusal("LOCK_TOKEN_MISMATCH")
        _, book = self.find(code, book_id)
        key, parameters = ("LOCKED", code, request_id), (user, book_id, ttl, metadata)
        if again := self.once(key, parameters, None):
            return again
        code = self.key(code, book_id)
        if self.hides(code, user, book, None):
            raise Refusal("CODE_NOT_FOUND")
        if book["lock_policy"] == "OFF":
            raise Refusal("INVALID_STATE_TRANSITION", state="LOCK_POLICY_OFF")
        taken = self.locks[token.lock] if token else None
        if taken and taken.whose == user:
            taken = None
        for refusal in (*self.why_not(code, user, book, None), *self._stays(taken, token, code)):
            raise refusal
        own = self._own(code, user)
        if own is not None:  # the user has a lock, or the one that follows it
            taken = None
        if own is not None and self.lock_state(own) == "EXPIRED":  # nobody is in their own way
            own.end = "EXPIRED"
            self._lock_event("LOCK_EXPIRED", self.locks.index(own), request_id)
            own = None
        if own is not None:
            number = self.locks.index(own)
            self._lock_event("LOCKED", number, request_id, expire_time=None, metadata=metadata)
            self.once(key, parameters, lambda it: it._held_still(number))
            return {**self._lock_answer(number), "replayed": True}
        self._check_room(code, user, taken)
        end = self.now + self._ttl(ttl, book)
        if taken:
            end = taken.message["expire_time"]
            self.release(taken, request_id)
        number, lock_id, fence = len(self.locks), Unknown(), Unknown()
        names = {"lock_id": lock_id, "fence": fence, "code": code, "user_id": user, "_user": user}
        times = {"create_time": self.now, "expire_time": end}
        self.locks.append(Lock({**names, "book_id": book["book_id"], **times}))
        self._lock_event("LOCKED", number, request_id, metadata=metadata)
        self.once(key, parameters, lambda it: it._held_still(number))
        return self._lock_answer(number)

    def _stays(self, taken: Lock | None, token: Token | None, code: str) -> Iterator[Refusal]:
        """Why the lock of the token cannot go over to another user."""
        if taken and token and taken.message["code"] != code:
            yield Refusal("LOCK_TOKEN_MISMATCH")
        elif taken and token and (self.lock_state(taken) != "HELD" or self.now >= token.expire):
            yield Refusal("LOCK_EXPIRED")

    def _check_room(self, code: str, user: str, taken: Lock | None) -> None:
        """Raises a Refusal where a new lock has no room, also in place of the one that is taken."""
        permits, left = [it for it in self.permits(code) if it is not taken], self.left(code)
        if left is not None and len(permits) >= left:
            raise self._locked(permits)
        mine = [it for it in self.locks if it.message["user_id"] == user]
        if [self.lock_state(it) for it in mine].count("HELD") >= self.locks_per_user_max:
            raise Refusal("LOCK_LIMIT_EXCEEDED", limit=self.locks_per_user_max)

    def _lock_event(self, type_: str, number: int, request_id: str, **fields: Any) -> None:
        lock = self.locks[number].message
        about = {key: lock[key] for key in ("user_id", "lock_id", "fence")}
        if type_ in ("LOCKED", "LOCK_EXTENDED"):
            about["expire_time"] = lock["expire_time"]
        code = lock["code"]
        self.code_event(type_, code, self.state(code), request_id, **about | fields)

    def _lock_answer(self, number: int) -> Message:
        message = self.lock_message(number)
        token = self.tokens.setdefault(Token(number, message["expire_time"]), Unknown())
        return {"lock": message, "lock_token": token}

    def _held_still(self, number: int) -> Message:
        state = self.lock_state(self.locks[number])
        if state != "HELD":
            raise Refusal("LOCK_EXPIRED", state=state)
        return self._lock_answer(number)

    def extend(self, token: Token, ttl: int, request_id: str) -> Message:
        """ExtendLock."""
        if token.lock < 0:
            raise Refusal("LOCK_TOKEN_MISMATCH")
        lock, key = self.locks[token.lock], ("LOCK_EXTENDED", token.lock, request_id)
        if again := self.once(key, ttl, None):
            return again
        if self.lock_state(lock) != "HELD":
            raise Refusal("LOCK_EXPIRED", state=self.lock_state(lock))
        book = self.books[lock.message["book_id"]]
        if book["lock_policy"] == "OFF":
            raise Refusal("INVALID_STATE_TRANSITION", state="LOCK_POLICY_OFF")
        if 0 < book["end_time"] <= self.now:
            raise Refusal("BOOK_EXPIRED", end_time=iso(book["end_time"]))
        assignment = self.assignments.get((lock.message["code"], lock.message["user_id"]))
        code = lock.message["code"]
        for refusal in (
            *self._not_started(book),
            *self._own_end(code),
            *self._own_start(code),
            *self._validity_over(assignment),
            *closed(book, self.now, self.now),
        ):
            raise refusal
        if lock.extensions >= self.extensions_max:
            raise Refusal("LOCK_LIMIT_EXCEEDED", limit=self.extensions_max)
        if self.now >= token.expire:
            raise Refusal("LOCK_EXPIRED")
        lock.extensions += 1
        end = self.now + self._ttl(ttl, book)
        lock.message["expire_time"] = max(end, lock.message["expire_time"])
        self._lock_event("LOCK_EXTENDED", token.lock, request_id)
        self.once(key, ttl, lambda it: it._held_still(token.lock))
        return self._lock_answer(token.lock)

    def unlock(self, number: int, request_id: str, reason: str = "LOCK_NOT_FOUND") -> Message:
        """UnlockCode, with a token or the lock_id; `reason`: why there is no such lock."""
        if number < 0:
            raise Refusal(reason)
        lock = self.locks[number]
        if lock.end == "RELEASED" and lock.erased:
            raise Refusal("USER_ERASED")
        if lock.end == "RELEASED":
            return {"lock": self.lock_message(number), "replayed": True}
        if self.lock_state(lock) != "HELD":
            raise Refusal("LOCK_EXPIRED", state=self.lock_state(lock))
        self.release(lock, request_id)
        return {"lock": self.lock_message(number)}

    def sweep(self, book_id: str) -> None:
        """What the sweeper writes down of a book."""
        for number, lock in enumerate(self.locks):
            over = lock.message["expire_time"] + self.grace <= self.now
            if lock.message["book_id"] == book_id and not lock.end and over:
                lock.end = "EXPIRED"
                self._lock_event("LOCK_EXPIRED", number, "lock-expired", caller="sweeper")

    # --- redemptions ----------------------------------------------------------------------------

    def validate(self, item: Item) -> Message:
        """ValidateCode."""
        try:
            _, book = self.find(item.code, item.book_id)
            item = replace(item, code=self.key(item.code, item.book_id))
            if self.hides(item.code, item.user, book, item):
                raise Refusal("CODE_NOT_FOUND")
        except Refusal as refusal:
            return {"problems": [refusal.error]}
        problems = list(self.why_not(item.code, item.user, book, item))
        others, left = self._others(item.code, item.user), self.left(item.code)
        own = self._own(item.code, item.user)
        shown = self.locks[item.token.lock] if item.token and item.token.lock >= 0 else None
        gone = (
            shown is not None
            and not shown.erased
            and shown.end in ("RELEASED", "REDEEMED")
            and (shown.message["code"], shown.message["user_id"]) == (item.code, item.user)
        )
        seen = self.locking(book) and not (item.token and (own or gone))
        if seen and left and len(others) >= left:
            problems.append(self._locked(others))
        return {
            "valid": not problems,
            "problems": [it.error for it in problems],
            "book_id": book["book_id"],
            "discount": self.discount(book, item),
            "benefit": book["discount"].get("benefit", {}).get("description", ""),
            "counts": self.counts(item.code, item.user),
            "terms": self.codes[item.code].terms,
        }

    def qualify(self, user: str, named: Sequence[tuple[str, str]], order: Item) -> Message:
        """QualifyCoupons, for codes and how they were typed."""
        tried = {
            code: (given["book_id"], given["display_code"], given.get("expire_time") or 0)
            for (code, owner), assignment in self.assignments.items()
            if owner == user and (given := assignment.given) and assignment.state == "ACTIVE"
        }
        for code, (book_id, _, end) in list(tried.items()):
            all_ends = (end, self.books[book_id]["end_time"], self.end_of(code))
            ends = [it for it in all_ends if it]
            if (
                self.books[book_id]["state"] == "CLOSED"
                or min(ends, default=self.now + 1) <= self.now
            ):
                del tried[code]
        own, names_of = set(tried), dict(reversed(named))
        for code, typed in named:
            tried.setdefault(code, ("", typed, 0))
        found: list[Message] = []
        for code, (book_id, shown, end) in tried.items():
            answer = self.validate(
                Item(
                    code=code,
                    user=user,
                    book_id=book_id,
                    order_id=order.order_id,
                    amount=order.amount,
                )
            )
            hidden = code in own and "book_id" not in answer
            if hidden and code not in names_of:
                continue
            valid = answer.pop("valid", False)
            answer.pop("terms", None)
            ends = [0 if hidden else end]
            if "book_id" in answer:
                ends += [self.books[answer["book_id"]]["end_time"], self.end_of(code)]
            first = min(filter(None, ends), default=0)
            display_code = names_of[code] if hidden else shown  # as any other that is named
            names = {"code": code, "display_code": display_code, "end_time": first}
            mine = code in own and not hidden
            found.append({**answer, **names, "redeemable": valid, "assigned": mine})

        def rank(it: Message) -> Any:
            discount: Message = it.get("discount") or {"amount_minor": 0}
            return (
                not it["redeemable"],
                -discount["amount_minor"],
                it["end_time"] or 10**15,
                it["display_code"],
            )

        return {"coupons": sorted(found, key=rank)}

    def redeem(self, items: Sequence[Item], *, atomic: bool = False) -> list[Message]:
        """What each item is answered. Whoever needs a permit in Redis comes again with one."""
        # Of what was carried out before each item answers for itself.
        atomic = atomic and not all(map(self._was_carried_out, items))
        before = deepcopy(self) if atomic else self
        answers = self._redeem_in_order(items)
        waiting = [index for index, it in enumerate(answers) if it is PERMIT]
        if atomic and (waiting or any("error" in it for it in answers)):
            self.__dict__ = deepcopy(before).__dict__
        if atomic and any("error" in it for it in answers):
            return _none_of(answers)
        attempts = dict[str, Attempts]()  # of the items before, with transient permits
        for index in range(len(items)) if atomic and waiting else waiting:
            if index not in waiting or not self._needs_permit(items[index]):
                answers[index] = self._redeem(items[index], None)
                continue
            of_code = attempts.setdefault(items[index].code, Attempts())
            answers[index] = self._redeem(items[index], of_code)
            of_code.all += 1
            of_code.failed += "error" in answers[index] or "replayed" in answers[index]
        if atomic and any("error" in it for it in answers):
            self.__dict__ = before.__dict__
            return _none_of(answers)
        return answers

    def _redeem_in_order(self, items: Sequence[Item]) -> list[Any]:
        """What comes for an order after an item that needs a permit comes again with it."""
        answers: list[Any] = []
        waiting = set[str]()
        for item in items:
            bound = self._is_bound(item)
            waits = bound and item.order_id in waiting
            answers.append(PERMIT if waits else self._redeem(item, None))
            if bound and answers[-1] is PERMIT:
                waiting.add(item.order_id)
        return answers

    def _is_bound(self, item: Item) -> bool:
        """Whether the order matters to the book."""
        try:
            _, book = self.find(item.code, item.book_id)
        except Refusal:
            return False
        return bool(item.order_id) and book["order_policy"] != "INDEPENDENT"

    def _needs_permit(self, item: Item) -> bool:
        _, book = self.find(item.code, item.book_id)
        return item.token is None and self.locking(book)

    def _redeem(self, item: Item, beside: Attempts | None) -> Any:
        """One item; `beside`: attempts that have permits beside it, None: it has none itself."""
        try:
            return self._redeem_one(item, beside)
        except Refusal as refusal:
            return {"error": refusal.error}

    def _redeem_one(self, item: Item, beside: Attempts | None) -> Any:
        _, book = self.find(item.code, item.book_id)
        key, parameters = _attempt(item)
        if again := self.once(key, parameters, None):
            return again
        item = replace(item, code=self.key(item.code, item.book_id))
        if self.hides(item.code, item.user, book, item):
            raise Refusal("CODE_NOT_FOUND")
        for refusal in self.why_not(item.code, item.user, book, item):
            raise refusal
        if item.token is None and self.locking(book):
            if beside is None:
                return PERMIT
            others, left = self._others(item.code, item.user), self.left(item.code)
            if others and left is not None and left < len(others) + beside.failed + 1:
                raise self._locked(others, beside.all)
        answer = self._use(item, book)
        self.once(key, parameters, lambda it: it._redeemed_still(answer))
        return answer

    def _was_carried_out(self, item: Item) -> bool:
        key, parameters = _attempt(item)
        attempt = (self.caller, *key)
        known = attempt in self.done and attempt not in self.forgotten
        return known and self.done[attempt][0] == parameters

    def _redeemed_still(self, answer: Message) -> Message:
        redemption_id = answer["redemption"]["redemption_id"]
        (redemption,) = [it for it in self.redemptions if it["redemption_id"] is redemption_id]
        if redemption["state"] != "SUCCEEDED":
            raise rolled_back(redemption)
        return {**answer, "redemption": dict(redemption)}

    def _use(self, item: Item, book: Message) -> Message:
        code, before, token = item.code, self.state(item.code), item.token
        own = self._own(code, item.user) if self.locking(book) else None
        if own and self.lock_state(own) != "HELD":
            own = None
        used = self.locks[token.lock] if token else own
        key, limited = (code, item.user), book["limits"]["max_redemptions_per_user_per_code"]
        redemption: Message = {
            "redemption_id": Unknown(),
            "code": code,
            "book_id": book["book_id"],
            "user_id": item.user,
            "order_id": item.order_id,
            "_user": item.user,
            "_order": item.order_id,
            "state": "SUCCEEDED",
            "order_amount": item.amount,
            "discount": self.discount(book, item),
            "benefit": book["discount"].get("benefit", {}).get("description", ""),
            "lock_id": used.message["lock_id"] if used else "",
            "redeem_time": self.now,
            "metadata": item.metadata,
            "etag": "a0",
            "_own_order": bool(self.end_user),
            "_terms": deepcopy(book),
        }
        self.redemptions.append(redemption)
        self.keep_currency(redemption)
        if key in self.assignments or limited or token:
            redemption["_counted"] = True
            self._count(self.assignments.setdefault(key, Assignment()), book, 1)
        if used:
            used.end = "REDEEMED"
        fence = used.message["fence"] if used and token else 0
        about = {"lock_id": redemption["lock_id"], "fence": fence, "metadata": item.metadata}
        about["event_id"] = redemption["redemption_id"]
        self._redemption_event("REDEEMED", redemption, before, item.request_id, **about)
        answer = dict(redemption)
        return {"redemption": answer, "counts": self.counts(code, item.user)}

    def _count(self, assignment: Assignment, book: Message, change: int) -> None:
        assignment.redemptions += change
        limits = (book["limits"]["max_redemptions_per_user_per_code"], book["limits"][USES])
        if assignment.state in ("ACTIVE", "REDEEMED"):
            reached = any(0 < it <= assignment.redemptions for it in limits)
            assignment.state = "REDEEMED" if reached else "ACTIVE"

    def _redemption_event(
        self, type_: str, of: Message, before: str, request_id: str, **fields: Any
    ) -> None:
        about = {key: of[key] for key in ("user_id", "order_id", "order_amount", "discount")}
        about["code_redemption_count"] = len(self.live(code=of["code"]))
        self.code_event(type_, of["code"], before, request_id, **about, **fields)

    def rollback(self, redemption_id: str, metadata: Message, request_id: str) -> Message:
        """RollbackRedemption."""
        found = [it for it in self.redemptions if it["redemption_id"].value == redemption_id]
        if not found:
            raise Refusal("REDEMPTION_NOT_FOUND")
        (redemption,) = found
        code, user = redemption["code"], redemption["user_id"]
        key = "ROLLED_BACK", redemption_id, request_id
        if again := self.once(key, metadata, None):
            return again
        if redemption["state"] == "ROLLED_BACK":
            raise rolled_back(redemption)
        before, book = self.state(code), self.book_of(code)
        redemption |= {"state": "ROLLED_BACK", "rollback_time": self.now}
        self.keep_currency(redemption)
        if redemption.get("_counted"):
            self._count(self.assignments[code, user], book, -1)
        about = {"redemption_id": redemption["redemption_id"], "metadata": metadata}
        self._redemption_event("ROLLED_BACK", redemption, before, request_id, **about)
        answer = {"redemption": dict(redemption), "counts": self.counts(code, user)}
        self.once(key, metadata, lambda _: answer)
        return answer


def _attempt(item: Item) -> tuple[tuple[str, str, str], object]:
    """What names the attempt, and what a repeat of it has to have in common."""
    amount = (item.amount or {}).get("amount_minor"), (item.amount or {}).get("currency_code")
    parameters = item.user, item.book_id, item.order_id, amount, item.metadata
    return ("REDEEMED", item.code, item.request_id), parameters


def rolled_back(redemption: Message) -> Refusal:
    """The refusal that names its roll-back."""
    time = iso(redemption["rollback_time"])
    return Refusal(
        "ALREADY_ROLLED_BACK", redemption_id=redemption["redemption_id"], rollback_time=time
    )


def _none_of(answers: Sequence[Message]) -> list[Message]:
    """What all items are answered when one of them is refused."""
    index = next(index for index, it in enumerate(answers) if "error" in it)
    first = answers[index]["error"]
    error = {**first, "metadata": {**first["metadata"], "item": str(index)}}
    return [it if "error" in it else {"error": error} for it in answers]
