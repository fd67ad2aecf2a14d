"""Load: what a batch of commands is decided on. Locks first, reads second.

Under READ COMMITTED a statement that had to wait for a row lock sees that row as it is now, and
everything it joined as it was before the wait. So one statement locks the code rows, in one fixed
order, and the next ones read; all of them travel together. Only books that limit users or the
whole book need a second round trip, to lock those counters, and repeats, to read what came since.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

from psycopg.rows import TupleRow

from coupon_service.model import (
    AssignRandom,
    BookTotals,
    Command,
    Lock,
    Redeem,
    State,
    UserCounts,
    rollback_id,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import ALL_BUSINESSES, scope_of_book
from coupon_service.rules import as_attempted, ids_of_attempt
from coupon_service.store.adjustments import select_adjustments, select_terms
from coupon_service.store.commands.archived_events import load_archived
from coupon_service.store.commands.assignments import (
    put_assignments,
    select_assignments,
    select_candidate_assignments,
)
from coupon_service.store.commands.codes import put_books, put_codes, select_books, select_codes
from coupon_service.store.commands.erased_rows import (
    add_erased,
    orders_under_pseudonyms,
    periods_under_pseudonyms,
    put_pseudonyms,
    users_under_pseudonyms,
)
from coupon_service.store.commands.events import (
    put_earlier,
    put_events,
    put_lock_events,
    select_events,
    select_lock_events,
    select_random_events,
)
from coupon_service.store.commands.limit_counters import limited, select_totals, select_users
from coupon_service.store.commands.order_coupons import put_order_coupons, select_order_coupons
from coupon_service.store.commands.orders import put_live_orders, select_orders
from coupon_service.store.commands.past_codes import later_scopes, load_past_codes
from coupon_service.store.commands.period_counters import select_periods
from coupon_service.store.commands.random_codes import lock_candidates
from coupon_service.store.commands.read_set import ReadSet, wanted_by
from coupon_service.store.commands.user_locks import select_user_locks
from coupon_service.store.erasures import erasures_of
from coupon_service.store.pipeline import Pipeline, Rows
from coupon_service.store.rows import (
    adjustment_from_row,
    shown_code_from_row,
    terms_from_row,
)
from coupon_service.store.scopes import LoadMemory, Scoping
from coupon_service.store.spellings import select_shown_codes, select_spellings


async def load(
    pipeline: Pipeline,
    commands: Sequence[Command],
    now: datetime,
    *,
    lock: bool,
    memory: LoadMemory,
) -> State:
    """Reads what the commands need, in a pipeline; with `lock`, locked against all other batches.

    `now`: decides what end users can see. `memory`: kept from call to call.
    """
    state = await _load(pipeline, commands, now, lock=lock, memory=memory)
    return state or await load(pipeline, commands, now, lock=lock, memory=memory)


async def _load(
    pipeline: Pipeline,
    commands: Sequence[Command],
    now: datetime,
    *,
    lock: bool,
    memory: LoadMemory,
) -> State | None:
    """As `load`; None where what was remembered is no longer so, and may have led to other rows."""
    # Kept here: other loads may have read, and remembered, what is new by the time of the answer.
    remembered = scoping, anybody_erased = memory.scoping, memory.anybody_erased
    wanted = wanted_by(commands, scoping, memory.later_scopes)
    state = State()
    if anybody_erased:
        put_pseudonyms(commands, memory.pseudonyms, state)
        add_erased(commands, wanted, state)
    spelled = [it for it in commands if it.earlier]
    for command in spelled:
        ids = wanted.random_events if isinstance(command, AssignRandom) else wanted.events
        ids.update(attempt for attempt, _ in command.earlier)
    read = await _load_named(pipeline, wanted, state, memory, now, lock=lock)
    if read != remembered or not (lock or _is_of_one_moment(state)):
        return None
    put_earlier(spelled, state)
    if scoping.finished and (later := later_scopes(commands, wanted, state)):
        memory.later_scopes |= later
        return None
    await load_past_codes(pipeline, commands, wanted, state)
    await load_archived(pipeline, commands, wanted, state)
    attempted = as_attempted(commands, state)
    await _load_attempts(pipeline, attempted, wanted, state)
    complete = await _load_further(pipeline, attempted, wanted, state, now, lock=lock)
    return state if complete else None


def _is_of_one_moment(state: State) -> bool:
    """Whether no code went to another book between the statements that read it without a lock."""
    return all(book_id in state.books for book_id, _ in state.codes)


async def _load_named(
    pipeline: Pipeline,
    wanted: ReadSet,
    state: State,
    memory: LoadMemory,
    now: datetime,
    *,
    lock: bool,
) -> tuple[Scoping, bool]:
    """Reads the rows that the commands name, in one round trip. Returns what is to be remembered:
    the scoping, and whether anybody was erased."""
    keys = sorted((bucket_of(code), code, scope) for code, scope in wanted.codes)
    code_rows = select_codes(pipeline, keys, lock=lock) if keys else ()
    spellings = select_spellings(pipeline, wanted.shown) if wanted.shown else ()
    # Candidates never wait for a lock, so they do not disturb the order; they come after the rest.
    candidates = [
        lock_candidates(pipeline, book_id, count, memory.formats.get(book_id), now)
        for book_id, count in wanted.candidates.items()
        if lock
    ]
    book_rows = select_books(pipeline, keys, wanted.books)
    assignment_rows = select_assignments(pipeline, wanted.assignments) if wanted.assignments else ()
    event_rows = select_events(pipeline, wanted.events) if wanted.events else ()
    lock_rows = select_lock_events(pipeline, wanted.lock_ids) if wanted.lock_ids else ()
    user_lock_rows = select_user_locks(pipeline, wanted.locks_of, now) if wanted.locks_of else ()
    order_rows = select_orders(pipeline, wanted.orders) if wanted.orders else ()
    fences = _next_fences(pipeline, wanted.fences) if wanted.fences and lock else ()
    adjustments = select_adjustments(pipeline, wanted.redemptions) if wanted.redemptions else ()
    book_terms = select_terms(pipeline, wanted.adjusted.values()) if wanted.adjusted else ()

    await pipeline.run()
    put_codes(code_rows, spellings, state)
    put_books(book_rows, state)
    if book_rows:
        sole_business, erasures = book_rows[0][:2]
        memory.scoping, memory.anybody_erased = Scoping.of(sole_business), erasures is not None
    read = memory.scoping, memory.anybody_erased
    state.several_businesses = memory.scoping.several_businesses
    state.erasures = erasures_of(book_rows[0][1]) if book_rows else {}
    put_assignments(assignment_rows, state)
    put_events(event_rows, state)
    put_lock_events(lock_rows, state)
    put_lock_events(user_lock_rows, state)
    put_live_orders(order_rows, state)
    _put_adjustments(adjustments, state)
    state.terms = {it: terms_from_row(tuple(row)) for it, *row in book_terms}
    state.fences = [row[0] for row in fences]
    state.fences.reverse()  # the decision takes them from the end
    for probe in candidates:
        await probe.read_into(state)
    for book_id in wanted.candidates:
        if book_id in state.books:
            memory.formats[book_id] = state.books[book_id]
    return read


async def _load_attempts(
    pipeline: Pipeline, attempted: Iterable[Command], wanted: ReadSet, state: State
) -> None:
    """Reads what earlier attempts wrote where only the book told under which id: in no round trip
    where the business was known before."""
    missed = {
        named
        for it in attempted
        if not isinstance(it, AssignRandom)
        for named in ids_of_attempt(it, ALL_BUSINESSES)
        if named not in wanted.events
    }
    if missed:
        rows = select_events(pipeline, missed)
        await pipeline.run()
        put_events(rows, state)


async def _load_further(
    pipeline: Pipeline,
    commands: Sequence[Command],
    wanted: ReadSet,
    state: State,
    now: datetime,
    *,
    lock: bool,
) -> bool:
    """Reads the counters of books that have them, and what came of commands that are repeats, in
    another round trip; in none where there is neither. Returns whether all was there to be locked:
    what an order has goes elsewhere when its user is erased."""
    repeated, lock_ids = _of_repeats(commands, wanted, state)
    rollbacks = list(map(rollback_id, repeated))
    adjustments = select_adjustments(pipeline, repeated) if repeated else ()
    rollback_rows = select_events(pipeline, rollbacks) if rollbacks else ()
    lock_rows = select_lock_events(pipeline, lock_ids) if lock_ids else ()
    users, totals = limited(commands, state, now)
    orders, periods = list(state.order_coupons), list(state.periods)
    of_erased = orders_under_pseudonyms(orders, state)
    user_rows = (
        select_users(pipeline, users, users_under_pseudonyms(users, state), lock=lock)
        if users
        else ()
    )
    coupon_rows = select_order_coupons(pipeline, orders, of_erased, lock=lock) if orders else None
    period_rows = (
        select_periods(
            pipeline,
            periods,
            periods_under_pseudonyms(periods, state),
            state.books,
            now,
            lock=lock,
        )
        if periods
        else ()
    )
    total_rows = select_totals(pipeline, totals, lock=lock) if totals else ()
    random = wanted.random_events if users else set[UUID]()
    # Repeats of a random assignment have no code in common; the user's row serialises them.
    random_rows = select_random_events(pipeline, random) if random else ()
    assignment_rows = (
        select_candidate_assignments(pipeline, state.candidates, users) if random else ()
    )
    if users or orders or periods or totals or rollbacks or lock_ids:
        await pipeline.run()

    for row in user_rows:
        state.users[(row[0], row[1])] = UserCounts(row[2], row[3])
    for row in period_rows:
        state.periods[row[0], row[1], row[2]] = row[3]
    complete = True
    if coupon_rows is not None:
        put_order_coupons(*coupon_rows, state)
        complete = not lock or len(coupon_rows[0]) == len(orders)
    for row in total_rows:
        state.totals[row[0]] = BookTotals(row[1], row[2])
    put_events(rollback_rows, state)
    _put_adjustments(adjustments, state)
    put_lock_events(lock_rows, state)
    put_events(random_rows, state)
    if random_rows:
        put_earlier(commands, state)
    put_assignments(assignment_rows, state)
    await _load_repeated_assignments(pipeline, random, state)
    return complete


def _of_repeats(
    commands: Iterable[Command], wanted: ReadSet, state: State
) -> tuple[list[UUID], dict[UUID, str]]:
    """What may have been undone, changed or ended since it came of commands that are repeats:
    redemptions, and locks with their codes."""
    redemptions: list[UUID] = []
    lock_ids: dict[UUID, str] = {}
    for command in commands:
        recorded = state.events.get(command.event_id)
        if recorded is None:
            continue
        if isinstance(command, Redeem):
            redemptions.append(recorded.event_id)
        elif isinstance(command, Lock) and recorded.lock_id is not None:
            lock_ids[recorded.lock_id] = command.code
    return redemptions, {it: lock_ids[it] for it in lock_ids.keys() - wanted.lock_ids.keys()}


async def _load_repeated_assignments(
    pipeline: Pipeline, random_events: Iterable[UUID], state: State
) -> None:
    """Reads codes that were chosen before, and their assignments: only the ledger tells which."""
    recorded = list(filter(None, map(state.events.get, random_events)))
    keys = {(it.code or "", it.user_id or "") for it in recorded}
    if keys:
        assignment_rows = select_assignments(pipeline, keys)
        scoped = {(it.code or "", scope_of_book(it.book_id)) for it in recorded}
        code_rows = select_shown_codes(pipeline, scoped)
        await pipeline.run()
        put_assignments(assignment_rows, state)
        for row in code_rows:
            code = shown_code_from_row(row)
            if code.key not in state.codes:
                state.put_code(code)
        await load_past_codes(pipeline, (), ReadSet(), state)


def _put_adjustments(rows: Iterable[TupleRow], state: State) -> None:
    for row in rows:
        adjustment = adjustment_from_row(row)
        state.adjustments[adjustment.redemption_id] = adjustment


NEXT_FENCES: Final = "SELECT nextval('lock_fences') FROM generate_series(1, %s)"


def _next_fences(pipeline: Pipeline, count: int) -> Rows:
    return pipeline.add(NEXT_FENCES, (count,))
