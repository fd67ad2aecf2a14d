"""What holds after any program of commands, however they are grouped and batched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from typing import Any
from uuid import UUID

from hypothesis import given, settings
from hypothesis import strategies as st
from unit.rules.commands import (
    assign,
    assign_random,
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
from unit.rules.world import BOOK_ID, MINUTE, NOW, PERMIT, World, book

from coupon_service.errors import CouponServiceError
from coupon_service.model import (
    AmountOff,
    AssignmentPolicy,
    AssignRandom,
    Benefit,
    Book,
    BookLimits,
    BookState,
    BookStats,
    BookTotals,
    Call,
    Code,
    CodeState,
    Command,
    CommandGroup,
    Done,
    Event,
    EventType,
    Lease,
    Lock,
    LockPolicy,
    OrderPolicy,
    Outcome,
    PercentOff,
    Period,
    PeriodKey,
    PeriodLimits,
    Tier,
    TieredDiscount,
    UserCounts,
    WriteSet,
)
from coupon_service.model.time_zones import time_zone
from coupon_service.rules import code_state
from coupon_service.rules.periods import period_keys

OTHER_ID = UUID(int=2)

BEARER = AssignmentPolicy.BEARER

TIERS = TieredDiscount((Tier(1, PercentOff(1_000, 0)), Tier(1_500, AmountOff(400))))
limits = st.sampled_from([0, 0, 2, 3, 1])
MIDNIGHT_AT_NOON = time_zone("Etc/GMT-12")
period_limits = st.builds(
    PeriodLimits,
    st.sampled_from(Period),
    st.just(MIDNIGHT_AT_NOON),
    st.integers(1, 4),
    st.integers(0, 2),
)
lock_policies = st.sampled_from([*[LockPolicy.OPTIONAL, LockPolicy.OFF] * 2, LockPolicy.REQUIRED])
books = st.builds(
    book,
    max_redemptions=limits,
    max_redemptions_per_code=limits,
    max_redemptions_per_user_per_code=limits,
    max_redemptions_per_user=limits,
    max_assignments_per_user=limits,
    budget_minor=st.sampled_from([0, 0, 700, 1_200]),
    max_redemptions_per_order=limits,
    order_policy=st.sampled_from([OrderPolicy.INDEPENDENT, *[OrderPolicy.COMBINABLE] * 2]),
    exclusive_group=st.sampled_from(["", "", "group"]),
    assignment_policy=st.sampled_from([*[BEARER] * 4, AssignmentPolicy.REQUIRED]),
    lock_policy=lock_policies,
    assigned_code_validity_s=st.sampled_from([0, 120]),
    period_limits=st.none() | period_limits,
    discount=st.sampled_from([AmountOff(500), PercentOff(1_500, 400), Benefit("a cup"), TIERS]),
)
codes = st.sampled_from(["A", "B", "A", "B", "A", "X", "A", "unknown"])
users = st.sampled_from(["ann", "bob", "ann", "cid"])
calls = st.builds(call, st.sampled_from("12345678"), st.sampled_from(["shop", "desk"]))
orders = st.sampled_from(["", "", "o1", "o2"])
amounts = st.sampled_from([None, eur(300), eur(5_000)])
permits = st.sampled_from([PERMIT, PERMIT, PERMIT, None])


def commands(world: World) -> st.SearchStrategy[Command]:
    """Commands about everything that there is: many can be carried out, some repeat others."""
    redemption = st.builds(redeem, codes, users, calls, order=orders, amount=amounts, lease=permits)
    assignment = st.builds(assign, codes, users, calls)
    expire_time = st.just(world.now + MINUTE)
    kinds: list[st.SearchStrategy[Command]] = [
        *[redemption] * 6,
        *[assignment] * 3,
        st.builds(assign_random, users, calls, st.sampled_from([BOOK_ID, OTHER_ID])),
        st.builds(lock, codes, users, calls, expire_time=expire_time),
        st.builds(revoke, codes, users, calls),
        st.builds(disable, codes, calls),
        *[st.builds(enable, codes, calls)] * 3,
    ]
    redeemed = [event for event in world.ledger if event.type is EventType.REDEEMED]
    if redeemed:
        kinds += [st.builds(rollback, st.sampled_from(redeemed), calls)] * 2
    locked = [event for event in world.ledger if _takes_a_lock(event)]
    if locked:
        locks = st.sampled_from(locked)
        leases = st.sampled_from([Lease(), PERMIT, Lease(gone=True)])
        kinds += [
            *[st.builds(_redeem_with, locks, calls, orders, leases)] * 2,
            st.builds(_lock_again, locks, calls),
            st.builds(extend, locks, expire_time, calls),
            st.builds(unlock, locks, calls),
            st.builds(expire, locks),
        ]
    return st.sampled_from(kinds).flatmap(lambda kind: kind)


def groups(world: World) -> st.SearchStrategy[list[CommandGroup]]:
    """A batch: single commands, and some that are done all or not at all."""
    command = commands(world)
    one = st.builds(CommandGroup, st.tuples(command))
    all_or_nothing = st.builds(CommandGroup, st.tuples(command, command), atomic=st.just(True))
    either = st.sampled_from([one, one, one, all_or_nothing]).flatmap(lambda group: group)
    return st.lists(either, min_size=4, max_size=12)


def _redeem_with(locked: Event, by: Call, order: str, lease: Lease) -> Command:
    code, user = locked.code or "", locked.user_id or ""
    return redeem(code, user, by, order=order, lock=token(locked), lease=lease)


def _lock_again(locked: Event, by: Call) -> Command:
    again = lock(locked.code or "", locked.user_id or "", by)
    return replace(again, lock_id=locked.event_id, expire_time=locked.expire_time)


@settings(max_examples=100, deadline=None)
@given(books, books, st.data())
def test_batches_of_any_commands(first: Book, second: Book, data: st.DataObject) -> None:
    """They do what their commands do one after the other, and leave every count right."""
    # Minutes before a day begins, on Friday the 16th.
    world = World(first, replace(second, book_id=OTHER_ID), codes="AB", now=NOW - 3 * MINUTE)
    world.put(Code("X", OTHER_ID, CodeState.AVAILABLE, 0, 0))
    for _ in range(5):
        batch = data.draw(groups(world))
        world.state.candidates = data.draw(_picks(world))
        alone = world.copy()
        one_by_one = [_run_alone(alone, group) for group in batch]
        outcomes, write_set = world.decide(*batch)
        assert_within_limits(world, write_set)
        assert_one_event_each(world, batch, outcomes, write_set)
        world.write(write_set)

        assert [list(map(_comparable, it)) for it in outcomes] == one_by_one
        alone.state.candidates = world.state.candidates
        assert alone == world
        assert_codes_are_what_the_ledger_says(world)
        assert_links_are_what_the_ledger_says(world)
        assert_counters_are_what_the_ledger_says(world)
        assert_periods_are_what_the_ledger_says(world)
        assert_statistics_are_what_ledger_and_codes_say(world)
        assert_orders_are_what_the_ledger_says(world)
        data.draw(_pastimes(world))()


def _picks(world: World) -> st.SearchStrategy[dict[UUID, list[str]]]:
    available: dict[UUID, list[str]] = {BOOK_ID: [], OTHER_ID: []}
    for code in world.state.codes.values():
        if code.state is CodeState.AVAILABLE:
            available[code.book_id].append(code.code)
    return st.fixed_dictionaries({key: st.permutations(it) for key, it in available.items()})


def _pastimes(world: World) -> st.SearchStrategy[Callable[[], None]]:
    """What may happen between two batches: time passes, or the book gets other rules."""

    def wait(minutes: int) -> Callable[[], None]:
        def happen() -> None:
            world.now += minutes * MINUTE

        return happen

    def change(**changes: Any) -> Callable[[], None]:
        return lambda: world.change_book(**changes)

    # Limits that there are go up and down; there are no new ones while a book is in use.
    names = [it.name for it in fields(BookLimits) if it.name != "max_redemptions_per_code"]
    present = [name for name in names if getattr(world.state.books[BOOK_ID].limits, name)]
    limit = {name: st.integers(1, 4) for name in present}
    if "budget_minor" in limit:
        limit["budget_minor"] = st.sampled_from([300, 700, 1_200])
    states = st.sampled_from([*[BookState.ACTIVE] * 4, BookState.PAUSED])
    return st.one_of(
        st.builds(wait, st.integers(0, 2)),
        st.builds(change, state=states, lock_policy=lock_policies, **limit),
    )


def assert_one_event_each(
    world: World, batch: list[CommandGroup], outcomes: list[list[Outcome]], write_set: WriteSet
) -> None:
    """Whatever was done has a row in the ledger, and a repeat has the row of what it repeats.

    So has each attempt that was answered with a lock, whoever took it.
    """
    done = [it for answers in outcomes for it in answers if isinstance(it, Done)]
    changes = [
        it for it in write_set.events if it.type is not EventType.LOCKED or _takes_a_lock(it)
    ]
    assert [it.event for it in done if not it.replayed] == changes
    rows = world.state.events | {event.event_id: event for event in write_set.events}
    assert all(rows[it.event.event_id] == it.event for it in done)
    for group, answers in zip(batch, outcomes, strict=True):
        if group.atomic and len({isinstance(it, Done) for it in answers}) > 1:
            # It was carried out before, and something of it was undone since.
            assert all(it.event_id in rows for it in group.commands)
            assert all(it.replayed for it in answers if isinstance(it, Done))
        for command, answer in zip(group.commands, answers, strict=True):
            if isinstance(command, Lock) and isinstance(answer, Done):
                assert rows[command.event_id].lock_id == answer.event.lock_id


def _takes_a_lock(event: Event) -> bool:
    return event.type is EventType.LOCKED and event.event_id == event.lock_id


def assert_within_limits(world: World, write_set: WriteSet) -> None:
    books_now = world.state.books
    for before, after in write_set.codes.values():
        allowed = books_now[after.book_id].limits.max_redemptions_per_code
        _within(before.redemptions, after.redemptions, allowed)
        _within(before.assignments, after.assignments, allowed)
    for assignment, new_assignment in write_set.assignments.values():
        limits = books_now[new_assignment.book_id].limits
        before_count = assignment.redemptions if assignment else 0
        allowed = limits.max_redemptions_per_user_per_code
        _within(before_count, new_assignment.redemptions, allowed)
    for (book_id, _), (counts, new_counts) in write_set.users.items():
        limits = books_now[book_id].limits
        _within(counts.redemptions, new_counts.redemptions, limits.max_redemptions_per_user)
        _within(counts.assignments, new_counts.assignments, limits.max_assignments_per_user)
    for (book_id, user, _), (count, new_count) in write_set.periods.items():
        of_period = books_now[book_id].period_limits
        assert of_period is not None
        _within(count, new_count, of_period.of(user))
    for book_id, (total, new_total) in write_set.totals.items():
        limits = books_now[book_id].limits
        _within(total.redemptions, new_total.redemptions, limits.max_redemptions)
        _within(total.discount_minor, new_total.discount_minor, limits.budget_minor)


def assert_codes_are_what_the_ledger_says(world: World) -> None:
    redeemed = _counted(world.ledger, lambda it: (it.book_id, it.code), _REDEMPTIONS)
    assigned = _counted(world.ledger, lambda it: (it.book_id, it.code), _ASSIGNMENTS)
    disabled = _counted(world.ledger, lambda it: (it.book_id, it.code), _SWITCHES)
    for code in world.state.codes.values():
        assert code.redemptions == redeemed[code.key] >= 0
        assert code.assignments == assigned[code.key] >= 0
        per_code = world.state.books[code.book_id].limits.max_redemptions_per_code
        state = code_state(code.redemptions, code.assignments, per_code)
        assert code.state is (CodeState.DISABLED if disabled[code.key] else state)


def assert_links_are_what_the_ledger_says(world: World) -> None:
    events = world.state.events
    counted = [
        it
        for it in world.ledger
        if events.get(it.redemption_id or it.event_id, it).user_code_redemptions is not None
    ]
    redeemed = _counted(counted, lambda it: (it.book_id, it.code, it.user_id), _REDEMPTIONS)
    assigned = _counted(world.ledger, lambda it: (it.book_id, it.code, it.user_id), _ASSIGNMENTS)
    for key, assignment in world.state.assignments.items():
        assert assignment.redemptions == redeemed[key] >= 0
        assert (assignment.state.name in ("ACTIVE", "REDEEMED")) is (assigned[key] == 1)
        fences = [
            it.fence or 0
            for it in world.ledger
            if it.type is EventType.REDEEMED and (it.book_id, it.code, it.user_id) == key
        ]
        assert assignment.fence == max(fences, default=0)


def assert_counters_are_what_the_ledger_says(world: World) -> None:
    ledger, state = world.ledger, world.state
    redeemed = _counted(ledger, lambda it: (it.book_id, it.user_id), _REDEMPTIONS)
    assigned = _counted(ledger, lambda it: (it.book_id, it.user_id), _ASSIGNMENTS)
    totals = _counted(ledger, lambda it: it.book_id, _REDEMPTIONS)
    for book_id, each in state.books.items():
        total = BookTotals(
            totals[book_id] if each.limits.any_total else 0,
            sum(_taken_off(it) for it in ledger if it.book_id == book_id)
            if each.limits.budget_minor
            else 0,
        )
        assert state.totals[book_id] == total
        if each.limits.any_per_user:
            for user in ("ann", "bob", "cid"):
                key = (book_id, user)
                counts = state.users.get(key, UserCounts())
                assert counts == UserCounts(redeemed[key], assigned[key])


def assert_periods_are_what_the_ledger_says(world: World) -> None:
    state, counts = world.state, Counter[PeriodKey]()
    for event in world.ledger:
        redemption = state.events[event.redemption_id] if event.redemption_id else event
        for key in period_keys(
            state.books[event.book_id], event.user_id or "", redemption.event_time
        ):
            counts[key] += _REDEMPTIONS.get(event.type, 0)
    assert {key: it for key, it in state.periods.items() if it} == +counts


def assert_orders_are_what_the_ledger_says(world: World) -> None:
    bound = [
        it
        for it in world.ledger
        if world.state.books[it.book_id].order_policy is not OrderPolicy.INDEPENDENT
    ]
    for (_, order, user), coupons in world.state.order_coupons.items():
        mine = [it for it in bound if (it.order_id, it.order_user_id or "") == (order, user)]
        counts = _counted(mine, lambda it: it.book_id, _REDEMPTIONS)
        assert {it.book_id: it.redemptions for it in coupons.books} == counts
        assert coupons.discount_minor == sum(map(_taken_off, mine))
        redeemed = [it for it in mine if it.type is EventType.REDEEMED]
        assert coupons.discount_minor <= max(it.order_amount_minor or 0 for it in redeemed)


def assert_statistics_are_what_ledger_and_codes_say(world: World) -> None:
    for book_id in world.state.books:
        ledger = [it for it in world.ledger if it.book_id == book_id]
        codes = [it for it in world.state.codes.values() if it.book_id == book_id]
        states = Counter(it.state for it in codes)
        types = Counter(it.type for it in ledger)
        assert world.stats.get(book_id, BookStats()) == BookStats(
            available=states[CodeState.AVAILABLE] - len(codes),
            assigned=states[CodeState.ASSIGNED],
            redeemed=states[CodeState.REDEEMED],
            disabled=states[CodeState.DISABLED],
            assignments=types[EventType.ASSIGNED] - types[EventType.REVOKED],
            redemptions=types[EventType.REDEEMED] - types[EventType.ROLLED_BACK],
            rollbacks=types[EventType.ROLLED_BACK],
            discount_minor=sum(map(_taken_off, ledger)),
        )


def _taken_off(event: Event) -> int:
    return _REDEMPTIONS.get(event.type, 0) * (event.discount_minor or 0)


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


def _run_alone(world: World, group: CommandGroup) -> list[object]:
    (outcomes,) = world.run(group)
    for command, outcome in zip(group.commands, outcomes, strict=True):
        if isinstance(command, AssignRandom) and isinstance(outcome, Done) and not outcome.replayed:
            world.state.candidates[command.book_id].remove(outcome.event.code or "")
    return list(map(_comparable, outcomes))


def _comparable(outcome: Outcome) -> object:
    if isinstance(outcome, CouponServiceError):
        return type(outcome), outcome.message, outcome.metadata
    return outcome
