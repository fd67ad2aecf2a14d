"""A chunk of codes that are changed together, under their row locks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, LiteralString

from coupon_service.errors import AssignmentNotFound, CodeNotFound, CouponServiceError, reason_name
from coupon_service.model import (
    Attempt,
    Book,
    Code,
    CodeChange,
    CommandGroup,
    EventType,
    Outcome,
    Revoke,
    SetCodeEnabled,
    earlier_attempts,
    event_id,
    fingerprint,
)
from coupon_service.model.codes import bucket_of
from coupon_service.model.scopes import scope_of_book
from coupon_service.rules import decide
from coupon_service.store.arrays import int_array, text_array
from coupon_service.store.bulk.change_progress import CHUNK, CodeChanges, Item, Part, PartDone
from coupon_service.store.bulk.code_filter import select_still_matching
from coupon_service.store.bulk.deletions import delete_codes, deletion_refusals
from coupon_service.store.commands.apply import apply
from coupon_service.store.commands.codes import LOCK_CODES, SELECT_CODES, key_arrays
from coupon_service.store.commands.executor import counted
from coupon_service.store.commands.load import load
from coupon_service.store.pipeline import Connection, Pipeline
from coupon_service.store.rows import code_from_row
from coupon_service.store.scopes import LoadMemory
from coupon_service.telemetry.metrics import Metrics

EVENTS: Final = {
    CodeChange.DISABLE: EventType.CODE_DISABLED,
    CodeChange.ENABLE: EventType.CODE_ENABLED,
    CodeChange.REVOKE: EventType.REVOKED,
}
"""What the ledger says of each code."""


class PartChanger:
    """Changes the codes of a part, which are all decided at the same time."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._memory = LoadMemory()

    async def carry_out(
        self,
        connection: Connection,
        changes: CodeChanges,
        book: Book,
        part: Part,
        mark: int | None,
        now: datetime,
    ) -> PartDone:
        """Changes what can be; the rest is refused, or passed over where it matches no more. In the
        transaction that writes the row of the chunk.

        `mark`: of the codes of the upload that is wanted, if one is.
        """
        if not part.items:
            return PartDone(0, 0)
        codes = await _select_codes(connection, book, part.items, lock=True)
        if changes.listed is None:
            wanted = changes.wanted
            matching = await select_still_matching(connection, book.book_id, wanted, mark, codes)
            codes = {name: it for name, it in codes.items() if name in matching}
        if changes.change is CodeChange.DELETE:
            done = await self._delete(connection, changes, book, part, codes)
        elif changes.change is CodeChange.REVOKE:
            done = await self._revoke(connection, changes, book, part, codes, now)
        else:
            done = await self._set_enabled(connection, changes, book, part, codes, now)
        return done

    async def preview(
        self, connection: Connection, changes: CodeChanges, book: Book, part: Part, now: datetime
    ) -> PartDone:
        """What `carry_out` would do."""
        if not part.items:
            return PartDone(0, 0)
        codes = await _select_codes(connection, book, part.items, lock=False)
        if changes.change is CodeChange.DELETE:
            refusals = await deletion_refusals(connection, book.book_id, codes)
            changed = len(codes) - len(refusals)
        elif changes.change is CodeChange.REVOKE:
            counts = await _count_assigned(connection, changes, codes)
            changed = sum(counts.values())
            refusals = _unassigned(changes, codes, counts)
        else:
            commands = [_enabling(changes, book, code) for code in codes]
            pipeline = Pipeline(connection)
            state = await load(pipeline, commands, now, lock=False, memory=self._memory)
            ((*outcomes,),), _ = decide([CommandGroup(tuple(commands))], state, now)
            refusals = _refused(codes, outcomes)
            changed = len(codes) - len(refusals)
        return PartDone(len(part.items), changed, _in_order(changes, part.items, codes, refusals))

    async def _set_enabled(
        self,
        connection: Connection,
        changes: CodeChanges,
        book: Book,
        part: Part,
        codes: Mapping[str, Code],
        now: datetime,
    ) -> PartDone:
        commands = [_enabling(changes, book, code) for code in codes]
        outcomes = await self._decide_and_apply(connection, commands, now)
        refusals = _refused(codes, outcomes)
        return PartDone(
            len(part.items),
            len(codes) - len(refusals),
            _in_order(changes, part.items, codes, refusals),
        )

    async def _revoke(
        self,
        connection: Connection,
        changes: CodeChanges,
        book: Book,
        part: Part,
        codes: Mapping[str, Code],
        now: datetime,
    ) -> PartDone:
        items = [it for it in part.items if it.code in codes]
        assigned = await _select_assigned(connection, changes, [it.code for it in items])
        worked_on = part.items
        if len(assigned) > CHUNK:  # the rest of this code, and all after it, are for the next chunk
            begun = assigned[CHUNK][0]
            worked_on = part.items[: [it.code for it in part.items].index(begun)]
            assigned = assigned[:CHUNK]
        commands = [_revocation(changes, book, *it) for it in assigned]
        outcomes = await self._decide_and_apply(connection, commands, now)
        refusals = _refused([code for code, *_ in assigned], outcomes)
        refusals |= _unassigned(changes, codes, Counter(code for code, *_ in assigned))
        return PartDone(
            len(worked_on),
            len(commands) - sum(isinstance(it, CouponServiceError) for it in outcomes),
            _in_order(changes, worked_on, codes, refusals),
        )

    async def _delete(
        self,
        connection: Connection,
        changes: CodeChanges,
        book: Book,
        part: Part,
        codes: Mapping[str, Code],
    ) -> PartDone:
        refusals = await deletion_refusals(connection, book.book_id, codes)
        deleted = [it for name, it in codes.items() if name not in refusals]
        if deleted:
            await delete_codes(connection, book.book_id, deleted)
        counts = Counter(
            ("CODES_DELETED", "refused", reason_name(type(it))) for it in refusals.values()
        )
        counts["CODES_DELETED", "done", ""] += len(deleted)
        self._metrics.commands_decided(counts)
        return PartDone(
            len(part.items),
            len(deleted),
            _in_order(changes, part.items, codes, refusals),
            [it.code for it in deleted],
        )

    async def _decide_and_apply(
        self, connection: Connection, commands: Sequence[SetCodeEnabled | Revoke], now: datetime
    ) -> list[Outcome]:
        group, pipeline = CommandGroup(tuple(commands)), Pipeline(connection)
        state = await load(pipeline, commands, now, lock=True, memory=self._memory)
        outcomes, write_set = decide([group], state, now)
        apply(pipeline, write_set, state.books)
        await pipeline.run()
        self._metrics.commands_decided(counted([group], outcomes))
        return outcomes[0]


# --- commands -----------------------------------------------------------------------------------


def _enabling(changes: CodeChanges, book: Book, code: str) -> SetCodeEnabled:
    # By the business of the book: who sees all has named the book, and no business.
    event, call = EVENTS[changes.change], replace(changes.call, business_id=book.business_id)

    def attempt(caller: str) -> Attempt:
        parts = caller, call.request_id, changes.book_id, code
        return event_id(bucket_of(code), event, *parts), fingerprint()

    named, parameters = attempt(call.caller)
    return SetCodeEnabled(
        call=call,
        type=event,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, (call.caller,)),
    )


def _revocation(
    changes: CodeChanges, book: Book, code: str, user_id: str, assign_time: datetime
) -> Revoke:
    call = replace(changes.call, business_id=book.business_id)
    # Once a chunk has revoked it, the user may get the code again: that is another assignment,
    # which the next chunk finds.
    assigned = assign_time.astimezone(UTC).isoformat()

    def attempt(caller: str) -> Attempt:
        parts = caller, call.request_id, book.book_id, code, user_id, assigned
        return event_id(bucket_of(code), EventType.REVOKED, *parts), fingerprint(user_id)

    named, parameters = attempt(call.caller)
    return Revoke(
        call=call,
        code=code,
        event_id=named,
        fingerprint=parameters,
        earlier=earlier_attempts(attempt, (call.caller,)),
        user_id=user_id,
    )


# --- refusals -----------------------------------------------------------------------------------


def _refused(codes: Iterable[str], outcomes: Iterable[Outcome]) -> dict[str, CouponServiceError]:
    pairs = zip(codes, outcomes, strict=True)
    return {code: it for code, it in pairs if isinstance(it, CouponServiceError)}


def _unassigned(
    changes: CodeChanges, codes: Iterable[str], assigned: Mapping[str, int]
) -> dict[str, CouponServiceError]:
    """Codes of a list that nobody has; others do not match."""
    if changes.listed is None:
        return {}
    return {code: AssignmentNotFound() for code in codes if not assigned.get(code)}


def _in_order(
    changes: CodeChanges,
    items: Sequence[Item],
    codes: Mapping[str, Code],
    refusals: Mapping[str, CouponServiceError],
) -> list[tuple[str, CouponServiceError]]:
    """The refusals of the items; also of those of a list that are no codes of the book."""
    missing = CodeNotFound() if changes.listed is not None else None
    found = ((it.sent, refusals.get(it.code) if it.code in codes else missing) for it in items)
    return [(sent, refusal) for sent, refusal in found if refusal is not None]


# --- statements ---------------------------------------------------------------------------------


async def _select_codes(
    connection: Connection, book: Book, items: Iterable[Item], *, lock: bool
) -> dict[str, Code]:
    """Those of the codes that are in the book, in the order of the items."""
    names = [it.code for it in items]
    scope = scope_of_book(book.book_id)
    keys = sorted((bucket_of(name), name, scope) for name in names)
    pipeline = Pipeline(connection)
    rows = pipeline.add(LOCK_CODES if lock else SELECT_CODES, key_arrays(keys))
    await pipeline.run()
    found = {code.code: code for code in map(code_from_row, rows) if code.book_id == book.book_id}
    return {name: found[name] for name in names if name in found}


_ACTIVE: Final[LiteralString] = """
    a.bucket = wanted.bucket AND a.code = wanted.code AND a.book_id = %(book_id)s
    AND a.state = 1 -- ACTIVE
    AND (%(before)s::timestamptz IS NULL OR a.assign_time < %(before)s)
"""
SELECT_ASSIGNED: Final[LiteralString] = f"""
SELECT wanted.code, active.user_id, active.assign_time
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) WITH ORDINALITY
    AS wanted (bucket, code, place)
CROSS JOIN LATERAL (
    SELECT a.user_id, a.assign_time FROM coupon_assignments AS a
    WHERE {_ACTIVE}
    ORDER BY a.user_id
    LIMIT %(count)s
) AS active
ORDER BY wanted.place, active.user_id
LIMIT %(count)s
"""


async def _select_assigned(
    connection: Connection, changes: CodeChanges, codes: Sequence[str]
) -> list[tuple[str, str, datetime]]:
    """Who has the codes, which are locked, and since when: up to one more than a chunk."""
    cursor = await connection.execute(
        SELECT_ASSIGNED, {**_assigned_parameters(changes, codes), "count": CHUNK + 1}
    )
    return await cursor.fetchall()


COUNT_ASSIGNED: Final[LiteralString] = f"""
SELECT wanted.code, active.count
FROM unnest(%(buckets)s::smallint[], %(codes)s::text[]) AS wanted (bucket, code)
CROSS JOIN LATERAL (SELECT count(*) FROM coupon_assignments AS a WHERE {_ACTIVE}) AS active
"""


async def _count_assigned(
    connection: Connection, changes: CodeChanges, codes: Iterable[str]
) -> dict[str, int]:
    """How many have each of the codes."""
    cursor = await connection.execute(COUNT_ASSIGNED, _assigned_parameters(changes, list(codes)))
    return dict(await cursor.fetchall())


def _assigned_parameters(changes: CodeChanges, codes: Sequence[str]) -> dict[str, object]:
    return {
        "buckets": int_array(map(bucket_of, codes)),
        "codes": text_array(codes),
        "book_id": changes.book_id,
        "before": changes.wanted.assigned_before,
    }
