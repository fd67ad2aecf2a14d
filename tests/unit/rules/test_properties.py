"""What holds after any program of commands, however they are grouped into units and batches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from uuid import UUID

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from unit.rules.builders import (
    BOOK_ID,
    MINUTE,
    PLACE,
    World,
    assign,
    assign_random,
    book,
    call,
    disable,
    enable,
    eur,
    expire,
    extend,
    lock,
    redeem,
    revoke,
    rollback,
    token,
    unlock,
)

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    AmountOff,
    AssignmentPolicy,
    AssignRandom,
    Benefit,
    Book,
    BookState,
    BookStats,
    Call,
    Code,
    CodeState,
    Command,
    Done,
    Effects,
    Event,
    EventType,
    Lease,
    LockPolicy,
    Outcome,
    PercentOff,
    Unit,
    UserCounts,
)
from coupon_service.rules import code_state

OTHER_ID = UUID(int=2)

limit = st.integers(0, 3)
books = st.builds(
    book,
    max_redemptions=limit,
    max_redemptions_per_code=limit,
    max_redemptions_per_user_per_code=limit,
    max_redemptions_per_user=limit,
    max_assignments_per_user=limit,
    assignment_policy=st.sampled_from(AssignmentPolicy),
    lock_policy=st.sampled_from(LockPolicy),
    assigned_code_validity_s=st.sampled_from([0, 120]),
    discount=st.sampled_from([AmountOff(500), PercentOff(1_500, 400), Benefit("a cup")]),
)
codes = st.sampled_from(["A", "B", "C", "X", "unknown"])
users = st.sampled_from(["ann", "bob", "cid"])
calls = st.builds(call, st.sampled_from(["r1", "r2", "r3"]), st.sampled_from(["shop", "desk"]))
orders = st.sampled_from(["", "o1", "o2"])
places = st.sampled_from([PLACE, PLACE, None])
amounts = st.sampled_from([None, eur(300), eur(5_000)])


def commands(world: World) -> st.SearchStrategy[Command]:
    """Commands about everything that there is: many can be carried out, many repeat others."""
    kinds: list[st.SearchStrategy[Command]] = [
        st.builds(redeem, codes, users, calls, order=orders, amount=amounts, lease=places),
        st.builds(redeem, codes, users, calls, order=orders, amount=amounts, lease=places),
        st.builds(lock, codes, users, calls, expire_time=st.just(world.now + MINUTE)),
        st.builds(assign, codes, users, calls),
        st.builds(assign_random, users, calls, st.sampled_from([BOOK_ID, OTHER_ID])),
        st.builds(revoke, codes, users, calls),
        st.builds(disable, codes, calls),
        st.builds(enable, codes, calls),
    ]
    redeemed = [event for event in world.ledger if event.type is EventType.REDEEMED]
    if redeemed:
        kinds.append(st.builds(rollback, st.sampled_from(redeemed), calls))
    locked = [event for event in world.ledger if event.type is EventType.LOCKED]
    if locked:
        locks = st.sampled_from(locked)
        leases = st.sampled_from([Lease(), PLACE, Lease(gone=True)])
        kinds += [
            st.builds(_redeem_with, locks, calls, orders, leases),
            st.builds(_lock_again, locks, calls),
            st.builds(extend, locks, st.just(world.now + 2 * MINUTE), calls),
            st.builds(unlock, locks, calls),
            st.builds(expire, locks),
        ]
    return st.one_of(kinds)


def _redeem_with(locked: Event, by: Call, order: str, lease: Lease) -> Command:
    code, user = locked.code or "", locked.user_id or ""
    return redeem(code, user, by, order=order, lock=token(locked), lease=lease)


def _lock_again(locked: Event, by: Call) -> Command:
    again = lock(locked.code or "", locked.user_id or "", by)
    return replace(again, lock_id=locked.event_id, expire_time=locked.expire_time)


class Programs(RuleBasedStateMachine):
    """Batches of random units, decided at once and one after the other."""

    @initialize(first=books, second=books)
    def open(self, first: Book, second: Book) -> None:
        self.world = World(first, replace(second, book_id=OTHER_ID))
        self.world.put(Code("X", OTHER_ID, CodeState.AVAILABLE, 0, 0))

    @rule(data=st.data())
    def run_batch(self, data: st.DataObject) -> None:
        """A batch does what its units do one after the other, and nothing more than it says."""
        world = self.world
        self._pick(data)
        items = st.lists(commands(world), min_size=1, max_size=4)
        units = data.draw(
            st.lists(
                st.builds(Unit, items.map(tuple), atomic=st.booleans()),
                min_size=1,
                max_size=4,
            )
        )
        alone = world.copy()
        one_by_one = [_run_alone(alone, unit) for unit in units]
        outcomes, effects = world.decide(*units)
        self._growth_is_within_limits(effects)
        known = set(world.state.events)
        world.write(effects)

        assert [list(map(_comparable, it)) for it in outcomes] == one_by_one
        alone.state.picks = world.state.picks
        assert world == alone
        for unit, answers in zip(units, outcomes, strict=True):
            assert not unit.atomic or len({isinstance(it, Done) for it in answers}) == 1
        done = [it for answers in outcomes for it in answers if isinstance(it, Done)]
        assert [it.event for it in done if not it.replayed] == list(effects.events)
        for it in done:
            assert world.state.events[it.event.event_id] == it.event
            assert it.replayed or it.event.event_id not in known

    @rule(minutes=st.integers(1, 3))
    def wait(self, minutes: int) -> None:
        self.world.now += minutes * MINUTE

    @rule(
        state=st.sampled_from([BookState.ACTIVE, BookState.ACTIVE, BookState.PAUSED]),
        lock_policy=st.sampled_from(LockPolicy),
        values=st.lists(st.integers(1, 3), min_size=4, max_size=4),
    )
    def change_book(self, state: BookState, lock_policy: LockPolicy, values: list[int]) -> None:
        """What a book allows while it is in use: limits that there are go up and down."""
        names = (
            "max_redemptions",
            "max_redemptions_per_user_per_code",
            "max_redemptions_per_user",
            "max_assignments_per_user",
        )
        limits = self.world.state.books[BOOK_ID].limits
        changes = {
            name: value for name, value in zip(names, values, strict=True) if getattr(limits, name)
        }
        self.world.change_book(state=state, lock_policy=lock_policy, **changes)

    def _pick(self, data: st.DataObject) -> None:
        state = self.world.state
        state.picks = {}
        for book_id in state.books:
            available = [
                code.code
                for code in state.codes.values()
                if code.book_id == book_id and code.state is CodeState.AVAILABLE
            ]
            state.picks[book_id] = data.draw(st.permutations(available))

    def _growth_is_within_limits(self, effects: Effects) -> None:
        books = self.world.state.books
        for before, after in effects.codes.values():
            allowed = books[after.book_id].limits.max_redemptions_per_code
            _within(before.redemptions, after.redemptions, allowed)
            _within(before.assignments, after.assignments, allowed)
        for link, new_link in effects.assignments.values():
            limits = books[new_link.book_id].limits
            before_count = link.redemptions if link else 0
            allowed = limits.max_redemptions_per_user_per_code
            _within(before_count, new_link.redemptions, allowed)
        for (book_id, _), (counts, new_counts) in effects.users.items():
            limits = books[book_id].limits
            _within(counts.redemptions, new_counts.redemptions, limits.max_redemptions_per_user)
            _within(counts.assignments, new_counts.assignments, limits.max_assignments_per_user)
        for book_id, (total, new_total) in effects.totals.items():
            _within(total, new_total, books[book_id].limits.max_redemptions)

    # --- every count is a sum over the ledger ---------------------------------------------------

    @invariant()
    def codes_are_what_the_ledger_says(self) -> None:
        redeemed = _counted(self.world.ledger, lambda it: it.code, _REDEMPTIONS)
        assigned = _counted(self.world.ledger, lambda it: it.code, _ASSIGNMENTS)
        disabled = _counted(self.world.ledger, lambda it: it.code, _SWITCHES)
        for code in self.world.state.codes.values():
            assert code.redemptions == redeemed[code.code] >= 0
            assert code.assignments == assigned[code.code] >= 0
            per_code = self.world.state.books[code.book_id].limits.max_redemptions_per_code
            state = code_state(code.redemptions, code.assignments, per_code)
            assert code.state is (CodeState.DISABLED if disabled[code.code] else state)

    @invariant()
    def links_are_what_the_ledger_says(self) -> None:
        events = self.world.state.events
        counted = [
            it
            for it in self.world.ledger
            if events.get(it.redemption_id or it.event_id, it).user_code_redemptions is not None
        ]
        redeemed = _counted(counted, lambda it: (it.code, it.user_id), _REDEMPTIONS)
        assigned = _counted(self.world.ledger, lambda it: (it.code, it.user_id), _ASSIGNMENTS)
        for key, link in self.world.state.assignments.items():
            assert link.redemptions == redeemed[key] >= 0
            assert (link.state.name in ("ACTIVE", "REDEEMED")) is (assigned[key] == 1)
            fences = [
                it.fence or 0
                for it in self.world.ledger
                if it.type is EventType.REDEEMED and (it.code, it.user_id) == key
            ]
            assert link.fence == max(fences, default=0)

    @invariant()
    def counters_are_what_the_ledger_says(self) -> None:
        ledger, state = self.world.ledger, self.world.state
        redeemed = _counted(ledger, lambda it: (it.book_id, it.user_id), _REDEMPTIONS)
        assigned = _counted(ledger, lambda it: (it.book_id, it.user_id), _ASSIGNMENTS)
        totals = _counted(ledger, lambda it: it.book_id, _REDEMPTIONS)
        for book_id, each in state.books.items():
            assert state.totals[book_id] == (totals[book_id] if each.limits.max_redemptions else 0)
            if each.limits.any_per_user:
                for user in ("ann", "bob", "cid"):
                    key = (book_id, user)
                    counts = state.users.get(key, UserCounts())
                    assert counts == UserCounts(redeemed[key], assigned[key])

    @invariant()
    def statistics_are_what_the_ledger_and_the_codes_say(self) -> None:
        world = self.world
        for book_id in world.state.books:
            ledger = [it for it in world.ledger if it.book_id == book_id]
            codes = [it for it in world.state.codes.values() if it.book_id == book_id]
            states = Counter(it.state for it in codes)
            types = Counter(it.type for it in ledger)
            discounts = {EventType.REDEEMED: 1, EventType.ROLLED_BACK: -1}
            assert world.stats.get(book_id, BookStats()) == BookStats(
                available=states[CodeState.AVAILABLE] - len(codes),
                assigned=states[CodeState.ASSIGNED],
                redeemed=states[CodeState.REDEEMED],
                disabled=states[CodeState.DISABLED],
                assignments=types[EventType.ASSIGNED] - types[EventType.REVOKED],
                redemptions=types[EventType.REDEEMED] - types[EventType.ROLLED_BACK],
                rollbacks=types[EventType.ROLLED_BACK],
                discount_minor=sum(
                    discounts.get(it.type, 0) * (it.discount_minor or 0) for it in ledger
                ),
            )

    @invariant()
    def states_in_the_ledger_follow_each_other(self) -> None:
        last: dict[str, int] = {}
        for it in self.world.ledger:
            code = it.code or ""
            assert it.state_before == last.get(code, CodeState.AVAILABLE)
            assert it.state_after is not None
            last[code] = it.state_after


_REDEMPTIONS = {EventType.REDEEMED: 1, EventType.ROLLED_BACK: -1}
_ASSIGNMENTS = {EventType.ASSIGNED: 1, EventType.REVOKED: -1}
_SWITCHES = {EventType.CODE_DISABLED: 1, EventType.CODE_ENABLED: -1}


def _counted(
    ledger: Iterable[Event], key: Callable[[Event], object], change: dict[EventType, int]
) -> Counter[object]:
    counts = Counter[object]()
    for event in ledger:
        counts[key(event)] += change.get(event.type, 0)
    return counts


def _within(before: int, after: int, allowed: int) -> None:
    assert after >= 0
    assert not allowed or after <= max(before, allowed)


def _run_alone(world: World, unit: Unit) -> list[object]:
    (outcomes,) = world.run(unit)
    for command, outcome in zip(unit.commands, outcomes, strict=True):
        if isinstance(command, AssignRandom) and isinstance(outcome, Done) and not outcome.replayed:
            world.state.picks[command.book_id].remove(outcome.event.code or "")
    return list(map(_comparable, outcomes))


def _comparable(outcome: Outcome) -> object:
    if isinstance(outcome, CouponServiceError):
        return type(outcome), outcome.message, outcome.metadata
    return outcome


TestPrograms = Programs.TestCase
TestPrograms.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
