"""The first half of the plain model: books, codes and assignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from datetime import UTC, datetime
from typing import Any
from unicodedata import normalize

from model.periods import fixed
from model.state import (
    USES,
    Assignment,
    Code,
    Lock,
    Message,
    ModelState,
    Refusal,
    Token,
    Unknown,
)

LIMITS = (
    "max_redemptions",
    USES,
    "max_redemptions_per_user_per_code",
    "max_redemptions_per_user",
    "max_assignments_per_user",
    "max_discount_minor",
)
BOOK_VERBS = {
    "BOOK_ACTIVATED": (("DRAFT", "PAUSED"), "ACTIVE"),
    "BOOK_PAUSED": (("ACTIVE",), "PAUSED"),
    "BOOK_CLOSED": (("DRAFT", "ACTIVE", "PAUSED"), "CLOSED"),
}


class Assignments(ModelState):
    """Changes the state, or raises a Refusal."""

    def once(
        self, key: Sequence[object], parameters: object, answer: Callable[[Any], Message] | None
    ) -> Message | None:
        """What a repeat is answered, or None; `answer` is remembered for repeats.

        It is asked of the world as it is then, and raises a Refusal where the first answer is no
        longer so.
        """
        attempt = (self.caller, *key) if key[-1] else object()
        if answer is not None:
            self.done[attempt] = parameters, answer
            last = self.ledger[-1] if self.ledger else {}
            if key[0] in (last.get("type"), "RANDOM"):
                users = last.get("user_id", ""), last.get("other_user_id", "")
                self.about[attempt] = {it for it in users if it}
        elif attempt in self.forgotten:
            raise Refusal("USER_ERASED")
        elif attempt in self.done:
            before, recorded = self.done[attempt]
            if before != parameters:
                raise Refusal("REQUEST_ID_REUSED")
            return {**recorded(self), "replayed": True}
        return None

    def record(self, type_: str, book_id: str, request_id: str, **fields: Any) -> None:
        """Writes into the ledger."""
        event = {"type": type_, "event_time": self.now, "book_id": book_id, "caller": self.caller}
        self.ledger.append({**event, "request_id": request_id or Unknown(), **fields})

    def find(self, code: str, book_id: str = "") -> tuple[Code, Message]:
        """A code and its book."""
        key = self.key(code, book_id)
        found = self.codes.get(key)
        if found is None or book_id not in ("", found.book_id):
            raise Refusal("CODE_NOT_FOUND")
        return found, self.book_of(key)

    # --- books ----------------------------------------------------------------------------------

    def create(self, book: Message, request_id: str) -> Message:
        """CreateCouponBook; `book` has all fields but the output-only ones."""
        self.created = None
        key = "BOOK_CREATED", book["business_id"], request_id
        parameters = deepcopy(book)
        if again := self.once(key, parameters, None):
            return again
        book_id: Any = Unknown()
        new: Message = {"book_id": book_id, "state": "DRAFT", "etag": 1}
        new |= {"create_time": self.now, "update_time": self.now}
        answer = {**deepcopy(book), **new}
        self.once(key, parameters, lambda it: {"coupon_book": it.book_message(book_id.value)})
        self.created = answer
        self.record("BOOK_CREATED", book_id, request_id, state_after="DRAFT")
        return {"coupon_book": {**answer, "effective_state": "DRAFT", "etag": "v1"}}

    def change(
        self,
        book_id: str,
        etag: str,
        request_id: str,
        event: str,
        parameters: object,
        change: Callable[[Message], Message],
        given: str = "",
        **fields: Any,
    ) -> Message:
        """Any other change of a book. `given`: the state that it is given."""
        if book_id not in self.books:
            raise Refusal("BOOK_NOT_FOUND")
        key = event, book_id, request_id
        if again := self.once(key, (etag, parameters), None):
            return again
        before = self.books[book_id]
        if etag not in ("", f"v{before['etag']}"):
            raise Refusal("CONCURRENT_MODIFICATION")
        after = {**before, **change(before), "etag": before["etag"] + 1, "update_time": self.now}
        self.books[book_id] = after
        states = {"state_before": before["state"], "state_after": after["state"]}
        self.record(event, book_id, request_id, **states, **fields)
        self.once(key, (etag, parameters), lambda it: it.book_still(book_id, given))
        return {"coupon_book": self.book_message(book_id)}

    def book_still(self, book_id: str, given: str) -> Message:
        """The book, when it is in this state, or in any."""
        state = self.books[book_id]["state"]
        if given not in ("", state):
            raise Refusal("INVALID_STATE_TRANSITION", state=state)
        return {"coupon_book": self.book_message(book_id)}

    def move(self, event: str, book_id: str, etag: str, request_id: str) -> Message:
        """Activate, Pause or Close CouponBook."""

        def moved(book: Message) -> Message:
            allowed, target = BOOK_VERBS[event]
            if book["state"] not in allowed:
                raise Refusal("INVALID_STATE_TRANSITION", state=book["state"])
            return {"state": target}

        target = BOOK_VERBS[event][1]
        return self.change(book_id, etag, request_id, event, (), moved, given=target)

    def update(self, book_id: str, values: Message, etag: str, request_id: str) -> Message:
        """UpdateCouponBook of the fields that are named."""

        def updated(book: Message) -> Message:
            if book["state"] == "CLOSED":
                raise Refusal("INVALID_STATE_TRANSITION", state="CLOSED")
            before, after = book["limits"], {**book, **values}["limits"]
            uses = [USES] if after[USES] != before[USES] else []
            independent = [it["order_policy"] == "INDEPENDENT" for it in (book, {**book, **values})]
            if book["state"] != "DRAFT" and len(set(independent)) > 1:
                state = book["state"]
                raise Refusal("INVALID_STATE_TRANSITION", state=state, field="order_policy")
            for name in uses + [name for name in LIMITS if after[name] and not before[name]]:
                if book["state"] != "DRAFT":
                    raise Refusal(
                        "INVALID_STATE_TRANSITION", state=book["state"], field=f"limits.{name}"
                    )
            returns = values.get("return_to_pool") and not book["return_to_pool"]
            if returns and book["state"] != "DRAFT":
                raise Refusal(
                    "INVALID_STATE_TRANSITION", state=book["state"], field="return_to_pool"
                )
            periods = fixed(book["period_limits"], {**book, **values}["period_limits"])
            if periods and book["state"] != "DRAFT":
                raise Refusal("INVALID_STATE_TRANSITION", state=book["state"], field=periods)
            policy = values.get("lock_policy", book["lock_policy"])
            if policy == book["lock_policy"]:
                return values
            held = policy == "OFF" and book["state"] != "DRAFT"
            life = self.ttl_max + self.grace
            return {**values, "_locks_until": self.now + life if held else 0}

        metadata = {"fields": sorted(values)}
        return self.change(
            book_id, etag, request_id, "BOOK_UPDATED", values, updated, metadata=metadata
        )

    # --- codes ----------------------------------------------------------------------------------

    def import_chunk(
        self,
        book_id: str,
        number: int,
        rows: list[str],
        request_id: str,
        least: int,
        dry: bool,
        more: Sequence[Message] = (),
    ) -> Message:
        """One chunk of ImportCodes; `dry`: changes nothing. `more`: of each row, its terms and its
        user."""
        if book_id not in self.books:
            raise Refusal("BOOK_NOT_FOUND")
        key = "CODES_IMPORTED", book_id, number, request_id
        if again := self.once(key, (rows, least, more), None):
            return again
        if self.books[book_id]["state"] == "CLOSED":
            raise Refusal("INVALID_STATE_TRANSITION", state="CLOSED")
        asked, least = (rows, least, more), least or self.books[book_id]["min_code_length"] or 4
        source, made, rejected = (book_id, request_id), dict[str, str](), list[Message]()
        seen, seen_at = set[str](), dict[str, int]()
        for index, row in enumerate(rows):
            code = "".join(it for it in normalize("NFC", row).upper() if it.isalnum())
            earlier = self.kept(code)
            said = more[index] if more else {}
            bad = self._is_bad(said.get("terms", {}), self.books[book_id])
            if {"/", "+", "."} & set(row) or len(code) < least or bad:
                outcome, reason = "INVALID", "INVALID_ARGUMENT"
            elif code in seen or (earlier and earlier.source == source):
                outcome, reason = "DUPLICATE_IN_UPLOAD", "DUPLICATE_CODE"
            elif earlier:
                outcome, reason = "ALREADY_EXISTS", "DUPLICATE_CODE"
            else:
                made[code], seen_at[code] = normalize("NFC", row), index
                outcome = reason = ""
            if outcome != "INVALID":
                seen.add(code)
            if outcome:
                error = {"error": Refusal(reason).error}
                rejected.append({"index": index, "outcome": outcome, **error})
        world = deepcopy(self) if dry else self
        refused, assigned = world.put_codes(book_id, source, made, seen_at, more)
        rejected += refused
        rejected.sort(key=lambda it: it["index"])
        stored = {code: it for code, it in world.codes.items() if it.source == source}
        made = {code: row for code, row in made.items() if code in stored}
        kinds = [it["outcome"] for it in rejected]
        counts = {"created": len(made), "duplicates": kinds.count("DUPLICATE_IN_UPLOAD")}
        counts |= {"existing": kinds.count("ALREADY_EXISTS"), "invalid": kinds.count("INVALID")}
        answer = {
            "chunk_number": number,
            "created_count": counts["created"],
            "duplicate_count": counts["duplicates"],
            "existing_count": counts["existing"],
            "invalid_count": counts["invalid"],
            "rejected_rows": rejected,
            "not_assigned_count": len(refused),
            "assigned_count": assigned,
        }
        if more:
            counts |= {"assigned": assigned, "not_assigned": len(refused)}
        counts |= self.given_away(book_id, made)
        if not dry:
            self.once(key, asked, lambda _: answer)
            self.record("CODES_IMPORTED", book_id, request_id, metadata=counts)
        return answer

    @staticmethod
    def _is_bad(terms: Message, book: Message) -> bool:
        """Whether a code of the book cannot have these terms."""
        money = "discount" in terms and "benefit" not in terms["discount"]
        return 0 < terms.get("end_time", 0) <= terms.get("start_time", 0) or (
            money and not book["currency_code"]
        )

    def put_codes(
        self,
        book_id: str,
        source: tuple[str, str],
        made: Message,
        places: dict[str, int],
        more: Sequence[Message],
    ) -> tuple[list[Message], int]:
        """New codes, as they were spelled, with what is said of them: the rows that could not be
        assigned, and how many were. All of them are there before the first is assigned."""
        said = {code: more[places[code]] if more else {} for code in made}
        for code, row in made.items():
            if code in self.codes:
                self.give_away(code, book_id)
            terms = said[code].get("terms", {})
            self.codes[code] = Code(code, book_id, source, spelling=row, terms=terms)
        refused, assigned = list[Message](), 0
        for code in made:
            user = said[code].get("user_id")
            if not user:
                continue
            refusal = next(self.why_no_assignment(user, self.book_of(code), code), None)
            key = "ASSIGNED", code, source[1]
            if (self.caller, *key) in self.done:
                gone = (self.caller, *key) in self.forgotten
                refusal = Refusal("USER_ERASED" if gone else "REQUEST_ID_REUSED")
            if refusal is None:
                answer = self.give(code, user, {}, source[1])
                asked: tuple[str, str, Message] = (user, book_id, {})
                self.once(key, asked, lambda it, of=answer: it.assigned_still(of))
                assigned += 1
                continue
            self.delete(code)
            error = {"error": refusal.error}
            refused.append({"index": places[code], "outcome": "NOT_ASSIGNED", **error})
        return refused, assigned

    def generate(self, book_id: str, count: int, request_id: str) -> Message:
        """GenerateCodes, the last message. `learn` is told the codes."""
        if book_id not in self.books:
            raise Refusal("BOOK_NOT_FOUND")
        key, answer = ("CODES_GENERATED", book_id, request_id), {"count": count}
        answer["generated_count"] = count
        if again := self.once(key, count, None):
            return again
        if self.books[book_id]["state"] == "CLOSED":
            raise Refusal("INVALID_STATE_TRANSITION", state="CLOSED")
        self.once(key, count, lambda _: answer)
        self.record("CODES_GENERATED", book_id, request_id, metadata={"count": count})
        return answer

    def learn(self, book_id: str, made: Iterable[str], request_id: str) -> None:
        """The codes that were generated."""
        source = book_id, request_id
        self.codes |= {code: Code(code, book_id, source) for code in sorted(made)}

    def set_enabled(self, event: str, code: str, request_id: str) -> Message:
        """Disable or Enable Code."""
        row, book = self.find(code)
        if again := self.once((event, code, request_id), (), None):
            return again
        before, row_off = self.state(code), event == "CODE_DISABLED"
        if row.disabled == row_off:
            raise Refusal("INVALID_STATE_TRANSITION", state=before)
        row.disabled = row_off
        states = {"state_before": before, "state_after": self.state(code)}
        self.record(event, book["book_id"], request_id, code=code, **states)
        key, of = (event, code, request_id), row.book_id
        self.once(key, (), lambda it: it.code_still(it.key(code, of), off=row_off))
        return {"coupon_code": self.code_message(code)}

    def code_still(self, code: str, *, off: bool) -> Message:
        """The code, when it is disabled, or when it is not."""
        if self.codes[code].disabled != off:
            raise Refusal("INVALID_STATE_TRANSITION", state=self.state(code))
        return {"coupon_code": self.code_message(code)}

    # --- assignments ----------------------------------------------------------------------------

    def why_no_assignment(
        self, user: str, book: Message, code: str = "", instead_of: str = ""
    ) -> Iterator[Refusal]:
        """Why this user cannot be given this code, or any; the first reason counts. `instead_of`:
        the user who has it by now."""
        limits = book["limits"]
        yield from self._over(book)
        if code:
            yield from self._own_end(code)
            assignment, left = self.assignments.get((code, user), Assignment()), self.left(code)
            if self.codes[code].disabled:
                yield Refusal("CODE_DISABLED")
            if assignment.state in ("ACTIVE", "REDEEMED"):
                yield Refusal("CODE_ALREADY_ASSIGNED")
            if left == 0:
                yield used_up(limits[USES])
            if 0 < limits[USES] <= self.assignment_count(code) - bool(instead_of):
                yield Refusal("CODE_ALREADY_ASSIGNED", limit=limits[USES])
            mine = self.redeemed_by(code, user)
            yield from reached("max_redemptions_per_user_per_code", limits, mine)
        mine = self.assignment_count(book_id=book["book_id"], user=user)
        yield from reached("max_assignments_per_user", limits, mine)

    def give(
        self,
        code: str,
        user: str,
        metadata: Message,
        request_id: str,
        *,
        before: str = "",
        end: int | None = None,
        by: str = "",
    ) -> Message:
        """The assignment, made. `before`: the state of the code, where it is not that of now;
        `end`: of the assignment, where it is not the book's; `by`: the user who had it."""
        book = self.books[self.codes[code].book_id]
        before = before or self.state(code)
        assignment = self.assignments.setdefault((code, user), Assignment())
        validity = book["assigned_code_validity"]
        shown = self.codes[code].spelling or code
        names = {"code": code, "display_code": shown, "book_id": book["book_id"], "user_id": user}
        if end is None:
            end = self.now + validity if validity else 0
        times = {"assign_time": self.now, "expire_time": end}
        assignment.state, assignment.given = "ACTIVE", {**names, **times, "metadata": metadata}
        about = {"user_id": user, "expire_time": end, "metadata": metadata, "other_user_id": by}
        self.code_event("ASSIGNED", code, before, request_id, **about)
        return {"assignment": self.assignment_message(code, user)}

    def assign(
        self, code: str, book_id: str, user: str, metadata: Message, request_id: str
    ) -> Message:
        """AssignCode."""
        _, book = self.find(code, book_id)
        key, parameters = ("ASSIGNED", code, request_id), (user, book_id, metadata)
        if again := self.once(key, parameters, None):
            return again
        for refusal in self.why_no_assignment(user, book, self.key(code, book_id)):
            raise refusal
        answer = self.give(code, user, metadata, request_id)
        self.once(key, parameters, lambda it: it.assigned_still(answer))
        return answer

    def assigned_still(self, answer: Message) -> Message:
        """The answer, when the assignment is active; one that was made anew is another."""
        made = answer["assignment"]
        assignment = self.assignments[self.key(made["code"], made["book_id"]), made["user_id"]]
        same = assignment.given["assign_time"] == made["assign_time"]
        state = assignment.state if same else "REVOKED"
        if state != "ACTIVE":
            raise Refusal("ASSIGNMENT_NOT_ACTIVE", state=state)
        return answer

    def assign_random(
        self, book_id: str, user: str, metadata: Message, request_id: str, picked: str
    ) -> Message:
        """AssignRandomCode; `picked`: the code that the service chose, or its reason for none."""
        if book_id not in self.books:
            raise Refusal("BOOK_NOT_FOUND")
        key, book = ("RANDOM", book_id, user, request_id), self.books[book_id]
        if again := self.once(key, metadata, None):
            return again
        for refusal in self.why_no_assignment(user, book):
            raise refusal
        free = [it for it in self.codes if self.codes[it].book_id == book_id]
        free = [it for it in free if self.state(it) == "AVAILABLE" and not any(self._own_end(it))]
        good = {it for it in free if not any(self.why_no_assignment(user, self.book_of(it), it))}
        if not free:
            raise Refusal("NO_CODES_AVAILABLE")
        if picked not in good:  # of no use to this user; a repeat may find another
            raise Refusal("CONTENTION" if len(good) < len(free) else "one of the codes")
        answer = self.give(picked, user, metadata, request_id)
        self.once(key, metadata, lambda it: it.assigned_still(answer))
        return answer

    def revoke(self, code: str, user: str, request_id: str) -> Message:
        """RevokeAssignment."""
        self.find(code)
        key = "REVOKED", code, request_id
        if again := self.once(key, user, None):
            return again
        before, assignment = self.state(code), self.assignments.get((code, user), Assignment())
        if not assignment.state:
            raise Refusal("ASSIGNMENT_NOT_FOUND")
        if assignment.state != "ACTIVE":
            raise Refusal("INVALID_STATE_TRANSITION", state=assignment.state)
        assignment.state = "REVOKED"
        self.code_event("REVOKED", code, before, request_id, user_id=user)
        answer = {"assignment": self.assignment_message(code, user)}
        self.once(key, user, lambda it: it.revoked_still(answer))
        return answer

    def transfer(
        self,
        code: str,
        book_id: str,
        giver: str,
        receiver: str,
        token: Token | None,
        metadata: Message,
        request_id: str,
    ) -> Message:
        """TransferAssignment."""
        if token and token.lock < 0:
            raise Refusal("LOCK_TOKEN_MISMATCH")
        _, book = self.find(code, book_id)
        key = "ASSIGNMENT_TRANSFERRED", code, request_id
        parameters = giver, receiver, book_id, metadata
        if again := self.once(key, parameters, None):
            return again
        code = self.key(code, book_id)
        for refusal in self.why_no_transfer(code, book, giver, receiver, token):
            raise refusal
        before, given = self.state(code), self.assignments[code, giver]
        if lock := self.held_by(code, giver):
            self.release(lock, request_id)
        given.state = "REVOKED"
        end = given.given["expire_time"]
        answer = self.give(code, receiver, metadata, request_id, before=before, end=end, by=giver)
        about = {"user_id": giver, "other_user_id": receiver, "metadata": metadata}
        self.code_event("ASSIGNMENT_TRANSFERRED", code, before, request_id, **about)
        self.once(key, parameters, lambda it: it.assigned_still(answer))
        return answer

    def why_no_transfer(
        self, code: str, book: Message, giver: str, receiver: str, token: Token | None
    ) -> Iterator[Refusal]:
        """Why the one cannot give the code to the other; the first reason counts."""
        given = self.assignments.get((code, giver), Assignment())
        if not given.state:
            yield Refusal("ASSIGNMENT_NOT_FOUND")
            return
        if given.state != "ACTIVE":
            yield Refusal("ASSIGNMENT_NOT_ACTIVE", state=given.state)
        yield from self._validity_over(given)
        shown = self.locks[token.lock] if token else None
        if shown and (shown.message["code"], shown.whose) != (code, giver):
            yield Refusal("LOCK_TOKEN_MISMATCH")
        held = self.held_by(code, giver)
        if held and held is not shown:
            left = held.message["expire_time"] - self.now
            yield Refusal("CODE_LOCKED", retry_after_ms=left)
        yield from self.why_no_assignment(receiver, book, code, instead_of=giver)

    def held_by(self, code: str, user: str) -> Lock | None:
        """The lock that a user holds on a code."""
        for lock in self.locks:
            whose = lock.message["code"], lock.message["user_id"]
            if whose == (code, user) and self.lock_state(lock) == "HELD":
                return lock
        return None

    def release(self, lock: Lock, request_id: str) -> None:
        """Ends a lock that is held."""
        lock.end = "RELEASED"
        about = {key: lock.message[key] for key in ("user_id", "lock_id", "fence")}
        code = lock.message["code"]
        self.code_event("UNLOCKED", code, self.state(code), request_id, **about)

    def return_to_pool(self, book_id: str) -> None:
        """What the sweeper does with the codes of a book that were let expire."""
        book = self.books[book_id]
        if not book["return_to_pool"] or book["state"] not in ("ACTIVE", "PAUSED"):
            return
        for (code, user), assignment in self.assignments.items():
            end = assignment.given.get("expire_time", 0)
            mine = assignment.state == "ACTIVE" and self.codes[code].book_id == book_id
            due = end > 0 and end + self.ttl_max + self.grace <= self.now
            if mine and due and not assignment.redemptions:
                before = self.state(code)
                assignment.state = "REVOKED"
                about = {"user_id": user, "expire_time": end, "caller": "sweeper"}
                self.code_event("ASSIGNMENT_EXPIRED", code, before, "assignment-expired", **about)

    def revoked_still(self, answer: Message) -> Message:
        """The answer, without what nobody knows when the code was assigned to the user anew."""
        revoked = answer["assignment"]
        key = self.key(revoked["code"], revoked["book_id"])
        assignment = self.assignments[key, revoked["user_id"]]
        if assignment.given["assign_time"] == revoked["assign_time"]:
            return answer
        unknown = ("assign_time", "expire_time", "metadata")
        return {"assignment": {key: it for key, it in revoked.items() if key not in unknown}}

    # --- what several changes have in common ----------------------------------------------------

    def _over(self, book: Message, time: int = 0) -> Iterator[Refusal]:
        """`time`: by which the end of the book is judged, now by default."""
        if book["state"] != "ACTIVE":
            yield Refusal("BOOK_NOT_ACTIVE", state=book["state"])
        if 0 < book["end_time"] <= (time or self.now):
            yield Refusal("BOOK_EXPIRED", end_time=iso(book["end_time"]))

    def _own_end(self, code: str, time: int = 0) -> Iterator[Refusal]:
        if 0 < self.end_of(code) <= (time or self.now):
            yield Refusal("CODE_EXPIRED", expire_time=iso(self.end_of(code)))

    def _own_start(self, code: str) -> Iterator[Refusal]:
        start = self.codes[code].terms.get("start_time", 0)
        if self.now < start:
            yield Refusal("CODE_NOT_STARTED", start_time=iso(start))

    def _not_started(self, book: Message) -> Iterator[Refusal]:
        if self.now < book["start_time"]:
            yield Refusal("BOOK_NOT_STARTED", start_time=iso(book["start_time"]))

    def _validity_over(self, assignment: Assignment | None, time: int = 0) -> Iterator[Refusal]:
        has_it = assignment is not None and assignment.state in ("ACTIVE", "REDEEMED")
        if has_it and assignment and 0 < assignment.given["expire_time"] <= (time or self.now):
            yield Refusal("CODE_EXPIRED", expire_time=iso(assignment.given["expire_time"]))

    def code_event(
        self, type_: str, code: str, before: str, request_id: str, **fields: Any
    ) -> None:
        states = {"state_before": before, "state_after": self.state(code)}
        book_id = self.codes[code].book_id
        self.record(type_, book_id, request_id, code=code, **states, **fields)


def used_up(uses: int) -> Refusal:
    """The code has no use left."""
    if uses == 1:
        return Refusal("CODE_ALREADY_REDEEMED")
    return Refusal("CODE_LIMIT_EXCEEDED", limit=uses)


def reached(name: str, limits: Message, count: int) -> Iterator[Refusal]:
    """A limit of the user is reached."""
    if 0 < limits[name] <= count:
        yield Refusal("USER_LIMIT_EXCEEDED", limit_name=name, limit=limits[name])


def iso(time: int) -> str:
    """Milliseconds since 1970 as metadata of an error tells them."""
    return datetime.fromtimestamp(time / 1000, UTC).isoformat()
