"""The working copy of a decision: what was loaded, changed in place, and what has to be written."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Final, TypedDict
from uuid import UUID

from coupon_service.model import (
    Adjustment,
    Assignment,
    AssignmentKey,
    Book,
    BookStats,
    BookTotals,
    Code,
    CodeKey,
    CodeState,
    Command,
    Event,
    EventType,
    OrderCoupons,
    OrderRef,
    PeriodKey,
    State,
    UserCounts,
    WriteSet,
    order_keys,
)
from coupon_service.rules.derived_states import code_state
from coupon_service.rules.periods import period_keys

_COUNTER: Final = {
    CodeState.AVAILABLE: "available",
    CodeState.ASSIGNED: "assigned",
    CodeState.REDEEMED: "redeemed",
    CodeState.DISABLED: "disabled",
}


class CodeEvent(TypedDict):
    """The columns that every ledger row of a code has."""

    event_id: UUID
    type: EventType
    event_time: datetime
    book_id: UUID
    code: str
    caller: str
    peer: str
    user_agent: str
    request_id: str
    fingerprint: int
    state_before: int
    state_after: int


@dataclass(slots=True)
class Draft:
    """A State and the changes made to it. Later commands see the changes of earlier ones."""

    state: State
    now: datetime
    codes: dict[CodeKey, tuple[Code, Code]] = field(
        default_factory=dict[CodeKey, tuple[Code, Code]]
    )
    assignments: dict[AssignmentKey, tuple[Assignment | None, Assignment]] = field(
        default_factory=dict[AssignmentKey, tuple[Assignment | None, Assignment]]
    )
    users: dict[tuple[UUID, str], tuple[UserCounts, UserCounts]] = field(
        default_factory=dict[tuple[UUID, str], tuple[UserCounts, UserCounts]]
    )
    totals: dict[UUID, tuple[BookTotals, BookTotals]] = field(
        default_factory=dict[UUID, tuple[BookTotals, BookTotals]]
    )
    periods: dict[PeriodKey, tuple[int, int]] = field(
        default_factory=dict[PeriodKey, tuple[int, int]]
    )
    orders: dict[OrderRef, tuple[OrderCoupons, OrderCoupons]] = field(
        default_factory=dict[OrderRef, tuple[OrderCoupons, OrderCoupons]]
    )
    events: list[Event] = field(default_factory=list[Event])
    stats: dict[UUID, dict[str, int]] = field(default_factory=dict[UUID, dict[str, int]])
    adjustments: dict[UUID, Adjustment] = field(default_factory=dict[UUID, Adjustment])

    def write_set(self) -> WriteSet:
        """What has to be written."""
        return WriteSet(
            codes=self.codes,
            assignments=self.assignments,
            users=self.users,
            totals=self.totals,
            periods=self.periods,
            orders=self.orders,
            events=tuple(self.events),
            stats={book_id: BookStats(**counts) for book_id, counts in self.stats.items()},
            adjustments=self.adjustments,
        )

    def fork(self) -> Draft:
        """A copy that can be thrown away; the rows themselves never change, so it is shallow."""
        state = replace(
            self.state,
            **{
                item.name: value.copy()
                for item in fields(self.state)
                if isinstance(value := getattr(self.state, item.name), (dict, list))
            },
        )
        state.candidates = {
            book_id: candidates.copy() for book_id, candidates in state.candidates.items()
        }
        return Draft(
            state=state,
            now=self.now,
            codes=self.codes.copy(),
            assignments=self.assignments.copy(),
            users=self.users.copy(),
            totals=self.totals.copy(),
            periods=self.periods.copy(),
            orders=self.orders.copy(),
            events=self.events.copy(),
            stats={book_id: counts.copy() for book_id, counts in self.stats.items()},
            adjustments=self.adjustments.copy(),
        )

    def about(self, command: Command, event: EventType, *, before: Code, after: Code) -> CodeEvent:
        """What the ledger says of any command that is carried out."""
        call = command.call
        return {
            "event_id": command.event_id,
            "type": event,
            "event_time": self.now,
            "book_id": after.book_id,
            "code": after.code,
            "caller": call.caller,
            "peer": call.peer,
            "user_agent": call.user_agent,
            "request_id": call.request_id,
            "fingerprint": command.fingerprint,
            "state_before": before.state,
            "state_after": after.state,
        }

    def record(self, event: Event) -> None:
        """Adds a row to the ledger; a repeat later in the same batch finds it, and so do commands
        about the lock that it used, or for its order."""
        self.events.append(event)
        self.state.events[event.event_id] = event
        if event.lock_id is not None:
            earlier = self.state.lock_events.get(event.lock_id, ())
            self.state.lock_events[event.lock_id] = (*earlier, event)
        if event.order_id is not None:
            self._record_order(event)

    def _record_order(self, event: Event) -> None:
        code = event.book_id, event.code or ""
        keys = order_keys(code, event.order_id or "", event.user_id or "", event.order_user_id)
        if event.type is EventType.REDEEMED:
            self.state.orders.update(dict.fromkeys(keys, event.event_id))
        elif event.type is EventType.ROLLED_BACK:
            for key in keys:
                self.state.orders.pop(key, None)

    def count(self, book_id: UUID, counter: str, change: int) -> None:
        """Adds to a statistics counter, named as in BookStats."""
        counts = self.stats.setdefault(book_id, {})
        counts[counter] = counts.get(counter, 0) + change

    def count_code(
        self, code: Code, book: Book, *, redemptions: int = 0, assignments: int = 0
    ) -> Code:
        """Adds to the counts of a code; its state follows from them unless it is disabled."""
        redeemed = code.redemptions + redemptions
        assigned = code.assignments + assignments
        state = code.state
        if state is not CodeState.DISABLED:
            state = code_state(redeemed, assigned, book.limits.max_redemptions_per_code)
        shown = code.spelling, code.terms, code.is_past
        after = Code(code.code, code.book_id, state, redeemed, assigned, *shown)
        if assignments:
            self.count(book.book_id, "assignments", assignments)
        self.put_code(after)
        return after

    def put_code(self, after: Code) -> None:
        """Changes a code."""
        key = after.key
        before = self.state.codes[key]
        if before.state is not after.state:
            self.count(after.book_id, _COUNTER[before.state], -1)
            self.count(after.book_id, _COUNTER[after.state], 1)
        first = self.codes.get(key)
        self.codes[key] = (first[0] if first else before, after)
        self.state.codes[key] = after

    def put_assignment(self, after: Assignment) -> None:
        """Changes the assignment between a user and a code, or makes it."""
        key = after.key
        before = self.state.assignments.get(key)
        first = self.assignments.get(key)
        self.assignments[key] = (first[0] if first else before, after)
        self.state.assignments[key] = after

    def put_adjustment(self, after: Adjustment) -> None:
        """Changes what the order of a redemption comes to."""
        self.adjustments[after.redemption_id] = after
        self.state.adjustments[after.redemption_id] = after

    def count_user(
        self, book: Book, user_id: str, *, redemptions: int = 0, assignments: int = 0
    ) -> None:
        """Adds to what a user has done in a book, where the book limits it."""
        if not book.limits.any_per_user:
            return
        key = (book.book_id, user_id)
        before = self.state.users.get(key, UserCounts())
        after = UserCounts(before.redemptions + redemptions, before.assignments + assignments)
        first = self.users.get(key)
        self.users[key] = (first[0] if first else before, after)
        self.state.users[key] = after

    def put_order(self, order: OrderRef, after: OrderCoupons) -> None:
        """Changes what is on an order."""
        before = self.state.order_coupons.get(order, OrderCoupons())
        first = self.orders.get(order)
        self.orders[order] = (first[0] if first else before, after)
        self.state.order_coupons[order] = after

    def count_total(self, book: Book, redemptions: int, discount_minor: int) -> None:
        """Adds to what the redemptions of a book come to, where it limits that.

        A version that knew no budgets has counted nothing for it: no roll-back takes that off.
        """
        if not book.limits.any_total:
            return
        if not book.limits.budget_minor:
            discount_minor = 0
        before = self.state.totals[book.book_id]
        after = BookTotals(
            max(before.redemptions + redemptions, 0), max(before.discount_minor + discount_minor, 0)
        )
        first = self.totals.get(book.book_id)
        self.totals[book.book_id] = (first[0] if first else before, after)
        self.state.totals[book.book_id] = after

    def count_period(self, book: Book, user_id: str, time: datetime, redemptions: int) -> None:
        """Adds to the redemptions of the period of this time, where the book limits them.

        There is nothing to take off a period whose count is gone: it is over.
        """
        if book.period_limits is None:
            return
        for key in period_keys(book, user_id, time):
            before = self.state.periods.get(key, 0)
            after = max(before + redemptions, 0)
            if after != before:
                first = self.periods.get(key)
                self.periods[key] = (first[0] if first else before, after)
                self.state.periods[key] = after
