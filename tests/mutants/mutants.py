"""Mutants of the service: bugs, in this process and for a test only.

Each is what somebody might write who does not know why the right code is as it is.
"""

# pyright: reportPrivateUsage=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportUnknownLambdaType=false
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import asyncio
import inspect
import itertools
import textwrap
from collections.abc import Generator, Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from typing import Any
from unittest import mock

import psycopg
from mutants.meeting import Meeting
from psycopg.conninfo import make_conninfo

from coupon_service.batching import DetachedTasks
from coupon_service.leases import AcquireStatus, acquisition, leases, scripts
from coupon_service.locks import acquire
from coupon_service.locks import token as lock_token
from coupon_service.locks.token import verify
from coupon_service.model import LockPolicy, Redeem, Rollback, TieredDiscount, normalization
from coupon_service.rpc.convert import books as book_messages
from coupon_service.rpc.convert.fields import Fields
from coupon_service.rules import decision, derived_states, refusals, repeats
from coupon_service.rules import locks as lock_rules
from coupon_service.rules import redemptions as redeeming
from coupon_service.rules.draft import Draft
from coupon_service.store import counters, database, generations
from coupon_service.store.bulk import generation, imports, lane, upload_rows
from coupon_service.store.commands import apply as applying
from coupon_service.store.commands import codes, limit_counters
from coupon_service.store.commands import executor as execute
from coupon_service.store.commands import load as loading
from coupon_service.store.events import EVENT_ROWS, INSERT_EVENTS

Mutant = AbstractContextManager[object]


def no_cap_guard() -> Mutant:
    """Nobody looks whether the code has a use left."""
    return mock.patch.object(refusals, "_code_used_up", _nothing)


def limit_read_before_the_lock() -> Mutant:
    """What is decided on was read without a lock."""
    return _all(
        mock.patch.object(codes, "LOCK_CODES", codes.SELECT_CODES),
        loaded_with_another(),
    )


def loaded_with_another() -> Mutant:
    """Batches decide when another one has read what they decide on."""
    meeting = Meeting()

    async def load(*arguments: Any, **named: Any) -> Any:
        state = await loading.load(*arguments, **named)
        await meeting.with_another()
        return state

    return mock.patch.object(execute, "load", load)


def unlock_by_a_stranger() -> Mutant:
    """Whoever unlocks ends the lock of the user that is there, whichever it is."""
    return _script("if held_id ~= ARGV[2] then return 0 end", "")


@contextmanager
def ledger_outside_the_transaction() -> Generator[None]:
    """The ledger is written by another connection."""

    def apply(pipeline: Any, write_set: Any, books: Any) -> None:
        applying.apply(pipeline, write_set, books)
        _insert_by_itself(pipeline, write_set)

    with mock.patch.object(execute, "apply", apply):
        yield


def request_id_recorded_after_commit() -> Mutant:
    """The row that makes a repeat a repeat is written when all else is committed."""
    late: list[tuple[Any, Any]] = []
    meeting = Meeting()
    real = execute.Executor.execute

    def apply(pipeline: Any, write_set: Any, books: Any) -> None:
        applying.apply(pipeline, write_set, books)
        if write_set.events:
            _leave_out_events(pipeline)
            late.append((pipeline.connection, write_set.events))

    async def committed(self: Any, groups: Any) -> Any:
        outcomes = await real(self, groups)
        await meeting.with_another()
        while late:
            _insert(*late.pop())
        return outcomes

    return _all(
        mock.patch.object(execute, "apply", apply),
        mock.patch.object(execute.Executor, "execute", committed),
    )


def generation_reserved_without_a_lock() -> Mutant:
    """Those who begin to make codes at the same time do not wait for each other."""
    select_book, codes_taken = generation.select_book, generations.codes_taken
    meeting = Meeting()

    async def select(connection: Any, book_id: Any, business_id: Any, **_: Any) -> Any:
        return await select_book(connection, book_id, business_id)

    async def taken(connection: Any, book: Any) -> int:
        counted = await codes_taken(connection, book)
        await meeting.with_another()
        return counted

    return _all(
        mock.patch.object(generation, "select_book", select),
        mock.patch.object(generations, "codes_taken", taken),
        mock.patch.object(generations, "_is_shared", return_value=False),
    )


def books_of_a_format_counted_alone() -> Mutant:
    """Each book has a format for itself, also where it is the same one."""
    return mock.patch.object(generations, "_is_shared", return_value=False)


def format_not_locked() -> Mutant:
    """Generations that begin in two books of a format do not wait for each other."""
    codes_taken = generations.codes_taken
    meeting = Meeting()

    async def unlocked(*_: object) -> None:
        pass

    async def taken(connection: Any, book: Any) -> int:
        counted = await codes_taken(connection, book)
        await meeting.with_another()
        return counted

    return _all(
        mock.patch.object(generations, "_lock_format", unlocked),
        mock.patch.object(generations, "codes_taken", taken),
    )


WAIT_FOR_ANOTHER = """
DO $$ BEGIN
    PERFORM pg_advisory_xact_lock_shared(4712);
    FOR turn IN 1..300 LOOP
        EXIT WHEN 1 < (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4712);
        PERFORM pg_sleep(0.005);
    END LOOP;
END $$
"""
"""Until another transaction has come here as well, or for one and a half seconds."""


def unsorted_row_locks() -> Mutant:
    """The rows are locked one by one, by turns from the first and from the last."""

    class Joined(list[Any]):
        def __iter__(self) -> Any:
            return chain.from_iterable(list.__iter__(self))

    real, turns = codes.select_codes, itertools.count()

    def select(pipeline: Any, keys: Sequence[codes.CodeRowKey], *, lock: bool) -> Any:
        found = Joined()
        for key in sorted(keys, reverse=next(turns) % 2 == 1):
            found.append(real(pipeline, [key], lock=lock))
            if len(found) == 1:
                pipeline.add(WAIT_FOR_ANOTHER)
        return found

    return mock.patch.object(loading, "select_codes", select)


def no_shield() -> Mutant:
    """A caller who stops waiting ends what was begun for it."""

    def run(_: object, work: Any) -> Any:
        return asyncio.ensure_future(work)

    return mock.patch.object(DetachedTasks, "run", run)


def fence_ignored() -> Mutant:
    """The newest lock that a user redeemed with is not remembered."""
    real = Draft.put_assignment
    return mock.patch.object(
        Draft, "put_assignment", lambda self, after: real(self, replace(after, fence=0))
    )


def rollback_not_locked() -> Mutant:
    """A roll-back is decided on rows that others may be changing."""
    meeting = Meeting()

    async def load(pipeline: Any, wanted: Any, now: Any, *, lock: bool, **named: Any) -> Any:
        careless = any(isinstance(command, Rollback) for command in wanted)
        state: Any = await loading.load(pipeline, wanted, now, lock=lock and not careless, **named)
        if careless:
            await meeting.with_another()
        return state

    return mock.patch.object(execute, "load", load)


def user_counter_missed() -> Mutant:
    """What a user did in a book is not counted."""
    return mock.patch.object(Draft, "count_user", return_value=None)


def expiry_by_the_callers_clock() -> Mutant:
    """Whoever comes with a token that its server takes for good gets the permit again."""
    return _script("expire + grace <= now or ", "")


def full_misread_as_taken() -> Mutant:
    """An answer that is not OK is taken for one."""
    table = {**acquisition._ACQUIRE_STATUS, "FULL": AcquireStatus.GRANTED}
    return mock.patch.object(acquisition, "_ACQUIRE_STATUS", table)


def some_of_all_or_nothing() -> Mutant:
    """What a batch did before its first refusal stays."""
    return mock.patch.object(Draft, "fork", lambda self: self)


def discount_rounded_up() -> Mutant:
    """A cent too much."""
    real = derived_states.discount_of

    def rounded_up(*arguments: Any) -> int | None:
        discount = real(*arguments)
        return discount and discount + 1

    return mock.patch.object(derived_states, "discount_of", rounded_up)


def first_tier_that_is_reached() -> Mutant:
    """An order gets the lowest tier that it reaches."""

    def for_order(self: TieredDiscount, amount_minor: int) -> Any:
        reached = (it for it in self.tiers if amount_minor >= it.from_amount_minor)
        return next((it.discount for it in reached), None)

    return mock.patch.object(TieredDiscount, "for_order", for_order)


def order_of_nothing_taken_for_unknown() -> Mutant:
    """An amount of 0 is none."""
    real = derived_states.discount_of
    return mock.patch.object(
        derived_states, "discount_of", lambda book, amount: real(book, amount or None)
    )


def token_not_verified() -> Mutant:
    """The signature of a token is not looked at."""

    def trusting(token: str, secrets: Any) -> Any:
        with mock.patch("hmac.compare_digest", return_value=True):
            return verify(token, secrets)

    return mock.patch.object(lock_token, "verify", trusting)


def used_lock_kept() -> Mutant:
    """A lock that was redeemed keeps its permit."""

    async def kept(*_: object, **__: object) -> bool:
        return True

    return mock.patch.object(leases.Leases, "release", kept)


def lock_answer_forgotten() -> Mutant:
    """Only the attempt that took a lock is recorded, not those that were answered with it."""
    return mock.patch.object(lock_rules, "_answer_with", _nothing)


def grace_keeps_its_own_user_out() -> Mutant:
    """The permit of a lock that is over stays where it is, whoever asks."""
    return _script("held_id ~= nil and held_id == ARGV[7]", "false")


def lock_followed_before_its_end() -> Mutant:
    """The permit of a lock that is over is given to the next before the ledger says that it is."""
    real = acquire.LockAcquirer._follow

    async def follow(self: Any, command: Any, previewed: Any, result: Any, _: Any) -> Any:
        return await real(self, command, previewed, result, None)

    return mock.patch.object(acquire.LockAcquirer, "_follow", follow)


def open_outcome_forgotten() -> Mutant:
    """What the last try of a transaction met is taken for what became of the first."""
    right = "DatabaseUnavailable() if is_open else self._failure(error)"
    return changed_source(database, "Database", "_attempts", right, "self._failure(error)")


def repeat_answered_as_recorded() -> Mutant:
    """Nobody asks what came of a change before a repeat is answered with it."""
    return mock.patch.object(repeats, "_undone_since", return_value=None)


def orders_of_users_shared() -> Mutant:
    """An order that an end user names is one of the business."""
    return mock.patch.object(Redeem, "order_user_id", None)


def orders_of_users_not_kept_from_services() -> Mutant:
    """Whoever names an order has it for itself, services as well."""
    return mock.patch.object(Redeem, "order_user_id", property(lambda self: self.user_id))


def collision_hidden() -> Mutant:
    """An end user who names an order once more is told that there is no such code."""
    real = refusals.is_hidden

    def hidden(command: Any, code: Any, book: Any, state: Any, now: Any) -> bool:
        collides = refusals._redemption_for_order(command, code, state) is not None
        return real(command, code, book, state, now) or (command.call.end_user and collides)

    return _all(*(mock.patch.object(it, "is_hidden", hidden) for it in (decision, limit_counters)))


def refusals_wait_for_the_disk() -> Mutant:
    """A batch that did nothing but lock rows is committed."""
    right = 'pipeline.ending = "ROLLBACK"'
    return changed_source(execute, "Executor", "_carry_out", right, "pass")


def book_of_an_unknown_code_not_read() -> Mutant:
    """Of a code that is not there no book is read."""
    joined = codes.SELECT_BOOKS.replace("LEFT JOIN", "JOIN")
    return mock.patch.object(codes, "SELECT_BOOKS", joined)


def counters_read_for_hidden_codes() -> Mutant:
    """What limits a user is looked up before it is known whether the code is for them."""
    return mock.patch.object(limit_counters, "is_hidden", return_value=False)


def rollback_not_read_for_a_repeat() -> Mutant:
    """Only what happens in the same batch is known of a redemption that is repeated."""
    real = loading._of_repeats
    return mock.patch.object(loading, "_of_repeats", lambda *given: ([], real(*given)[1]))


def repeated_batch_refused_as_a_whole() -> Mutant:
    """One item that was rolled back refuses all of a batch that was carried out."""
    return mock.patch.object(decision, "is_repeat", return_value=False)


def assignments_not_told_apart() -> Mutant:
    """Whoever has the code has it by the request that is repeated."""

    def state(_: Any, assignment: Any) -> Any:
        return assignment.state

    return mock.patch.object(repeats, "_state_since", state)


def judged_now_with_a_token() -> Mutant:
    """Whoever comes after the end comes too late, whatever they have locked."""
    return mock.patch.object(refusals, "_ends_judged_at", lambda *arguments: arguments[-1])


def policy_off_forgets_locks() -> Mutant:
    """A book whose locking is switched off has no locks."""

    def locking(book: Any, _: object) -> bool:
        return book.lock_policy is not LockPolicy.OFF

    return mock.patch.object(redeeming, "may_be_locked", locking)


def discounts_summed_in_64_bits() -> Mutant:
    """The sum of the discounts of a book is as large as one of them can be."""
    summed = "coalesce(sum(discount_minor), 0)"
    assert summed in counters.SUM_COUNTERS
    wrong = counters.SUM_COUNTERS.replace(summed, summed + "::bigint")
    return mock.patch.object(counters, "SUM_COUNTERS", wrong)


def sum_answered_as_it_is() -> Mutant:
    """A sum is answered that the contract has no room for."""
    return mock.patch.object(book_messages, "INT64_MAX", 10**30)


# --- how they are made --------------------------------------------------------------------------


def codes_not_composed() -> Mutant:
    """A letter that is typed as two characters is not the one that is stored."""
    return mock.patch.object(normalization, "composed", lambda _, text: text)


def orders_compared_as_sent() -> Mutant:
    """An order is another one when a letter of it is spelled as two characters."""
    real = Fields.identifier

    def identifier(self: Fields, field: str, value: str, **named: Any) -> str:
        return value if field == "order_id" else real(self, field, value, **named)

    return mock.patch.object(Fields, "identifier", identifier)


def spreadsheet_numbers_taken() -> Mutant:
    """What a spreadsheet made of a code is another code."""
    return mock.patch.object(upload_rows, "spoiled", return_value=None)


def dry_run_that_writes() -> Mutant:
    """What is only to be tried is imported."""

    async def try_chunk(self: Any, *chunk: Any) -> Any:
        return await self.import_chunk(*chunk[:-1])

    return mock.patch.object(imports.CodeImporter, "try_chunk", try_chunk)


def short_codes_taken() -> Mutant:
    """However short a code of an upload is, it is taken."""
    real = upload_rows.ChunkRows.add

    def add(self: Any, rows: Any, first: int, form: Any, _: int, bad: Any = ()) -> None:
        real(self, rows, first, form, 1, bad)

    return mock.patch.object(upload_rows.ChunkRows, "add", add)


def bulk_work_without_a_turn() -> Mutant:
    """Each worker stores codes whenever it likes."""
    return mock.patch.object(lane, "LOCK_LANE", "SELECT %s")


def _nothing(*_: object) -> Iterable[Any]:
    return iter(())


def _insert_by_itself(pipeline: Any, write_set: Any) -> None:
    if write_set.events:
        _leave_out_events(pipeline)
        _insert(pipeline.connection, write_set.events)


def _leave_out_events(pipeline: Any) -> None:
    pipeline._waiting = [it for it in pipeline._waiting if it[0] != INSERT_EVENTS]


def _insert(beside: Any, events: Any) -> None:
    where = make_conninfo(beside.info.dsn, password=beside.info.password)
    with psycopg.connect(where, autocommit=True) as connection:
        connection.execute(INSERT_EVENTS, EVENT_ROWS.array_parameters(events))


def _script(right: str, wrong: str) -> Mutant:
    real = scripts._text
    files = ("permits.lua", "acquire.lua", "release.lua")
    assert any(right in real(name) for name in files), right

    def text(name: str) -> str:
        return real(name).replace(right, wrong)

    return mock.patch.object(scripts, "_text", text)


def changed_source(module: Any, name: str, method: str, right: str, wrong: str) -> Mutant:
    """The method of the class, with something wrong in place of something right."""
    kind = getattr(module, name)
    source = textwrap.dedent(inspect.getsource(getattr(kind, method)))
    assert right in source, right
    changed: dict[str, Any] = {}
    text = "from __future__ import annotations\n" + source.replace(right, wrong)
    exec(text, vars(module), changed)  # noqa: S102 - the service's own text, with a bug
    return mock.patch.object(kind, method, changed[method])


@contextmanager
def _all(*mutants: Mutant) -> Generator[None]:
    with ExitStack() as stack:
        for it in mutants:
            stack.enter_context(it)
        yield
