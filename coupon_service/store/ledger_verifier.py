"""The ledger compared with its seals, and proofs of what is in it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from coupon_service.audit.leaves import (
    OTHER_PART,
    USER_PART,
    Row,
    unpacked,
    users_of,
)
from coupon_service.audit.merkle import inclusion_path
from coupon_service.audit.proofs import InclusionProof, opened_parts
from coupon_service.audit.records import MalformedError, decode
from coupon_service.audit.seals import (
    Leaf,
    Link,
    Position,
    begin_chain,
    is_intact,
    position_of,
    unpack_leaves,
)
from coupon_service.audit.verification import NO_LEAF, Fault, Finding, Verification
from coupon_service.errors import (
    Archived,
    EventNotFound,
    EventNotSealed,
    LedgerChanged,
    SealNotFound,
)
from coupon_service.model import EventType
from coupon_service.store.archived_ranges import select_archive, select_archived
from coupon_service.store.arrays import text_array
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.ledger_rows import (
    leaves_of,
    select_keys,
    select_rows,
    select_rows_by_id,
)
from coupon_service.store.pipeline import Connection
from coupon_service.store.seals import (
    Head,
    select_first_since,
    select_head,
    select_seal,
    select_seal_of,
    select_seals,
)

ROWS_AT_ONCE: Final = 256
PAGES_AT_ONCE: Final = 1_024
"""Of the table, when rows without a number are counted: 8 MiB."""

FINDINGS_MAX: Final = 100
"""After so many nothing more is compared."""

LATER_SEALS_MAX: Final = 20_000
"""In one proof: a little more than two megabytes."""

ERASED: Final = "erased-"
"""What the name of a user who was erased begins with."""

WHOSE_TURN: Final = "verifier"
"""For the bulk lane, in which businesses take turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundEvent:
    """Something that is wrong, and with which event, where there is one."""

    finding: Finding
    event_id: UUID | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """How far the ledger has been compared, and what was found since the last of these.

    `rows`: compared; `erased_rows`: of them, those of which something was erased. `archived_rows`:
    not there, since they are in archives. `is_done`: it is the last one. Only that has
    `unsealed_rows`, after the newest seal, and, where the whole ledger was compared,
    `unnumbered_rows`: from before rows had numbers, which nothing is known about.
    """

    seals: int = 0
    rows: int = 0
    erased_rows: int = 0
    archived_rows: int = 0
    sequence: int = 0
    last_sequence: int = 0
    findings: tuple[FoundEvent, ...] = ()
    is_done: bool = False
    unsealed_rows: int = 0
    unnumbered_rows: int | None = None


@dataclass(frozen=True, slots=True)
class _Range:
    """The rows in the range of a seal, in the order of their numbers, and their leaves.

    `archived`: numbers of rows that are in archives.
    """

    rows: list[Row]
    leaves: list[Leaf]
    archived: set[int]

    @property
    def missing(self) -> set[int]:
        """Numbers of rows that are only in archives."""
        return self.archived - {row.sequence for row in self.rows}

    @property
    def erased(self) -> list[Row]:
        return [row for row in self.rows if row.commitments is not None]


class LedgerVerifier:
    """Finds out whether the ledger is what was sealed. It gives way to others as bulk work does."""

    def __init__(self, lane: BulkLane) -> None:
        self._lane = lane

    async def head(self) -> Head:
        """Where the chain of seals is."""
        return await self._lane.read("seal_head", select_head)

    async def verify(
        self, start_time: datetime | None = None, end_time: datetime | None = None
    ) -> AsyncGenerator[Verified]:
        """Compares the rows of all seals that were made in this time, and the seals themselves.

        Yields after each seal. Raises what Database.read raises.
        """
        head = await self.head()
        position = await self._position(head, start_time)
        verification = Verification(position)
        done = Verified(sequence=position.last_sequence, last_sequence=head.position.last_sequence)
        pseudonyms: dict[str, Row] = {}
        found = 0
        while found < FINDINGS_MAX and verification.position.number < head.position.number:
            async with self._lane.turn(WHOSE_TURN):
                link = await self._seal(verification.position.number + 1)
                if link is None or (end_time is not None and link.seal.seal_time >= end_time):
                    break
                compared, findings = await self._compare(verification, link)
            for row in compared.erased:
                pseudonyms |= {name: row for name in _pseudonyms(row) if name not in pseudonyms}
            findings = [*findings, *_not_blank(link, compared.erased)]
            found += len(findings)
            done = replace(
                done,
                seals=done.seals + 1,
                rows=done.rows + len(compared.rows),
                erased_rows=done.erased_rows + len(compared.erased),
                archived_rows=done.archived_rows + len(compared.missing),
                sequence=link.seal.last_sequence,
                findings=tuple(_found(it, compared.rows) for it in findings),
            )
            yield done
        is_whole = start_time is None and end_time is None
        findings = list(verification.end(head.position)) if end_time is None else []
        findings += await self._unrecorded(pseudonyms)
        ends = [_found(it, pseudonyms.values()) for it in findings]
        if is_whole:
            ends += await self._before_the_first()
        yield replace(
            done,
            findings=tuple(ends),
            is_done=True,
            unsealed_rows=await self._count_after(head.position.last_sequence),
            unnumbered_rows=await self._count_unnumbered() if is_whole else None,
        )

    async def _position(self, head: Head, start_time: datetime | None) -> Position:
        """Where the chain is before the first seal that was made at this time or later."""
        beginning = Position(0, 0, begin_chain(head.log_id))
        if start_time is None:
            return beginning

        async def find(connection: Connection) -> Position:
            number = await select_first_since(connection, start_time)
            if number is None:
                return head.position
            before = await select_seals(connection, number - 1, 1)
            is_there = bool(before) and before[0].seal.number == number - 1
            return position_of(before[0]) if is_there else beginning

        return await self._lane.read("first_seal", find)

    async def _seal(self, number: int) -> Link | None:
        async def find(connection: Connection) -> Link | None:
            return await select_seal(connection, number)

        return await self._lane.read("seal", find)

    async def _compare(
        self, verification: Verification, link: Link
    ) -> tuple[_Range, list[Finding]]:
        """The rows of a seal, and what is wrong with it. What is, is looked at once more: a row may
        have been erased between the look at it and that at its user's key."""
        before = verification.position
        compared = await self._range(link)
        findings = list(verification.compare(link, compared.leaves, compared.archived))
        if findings:
            verification.position = before
            compared = await self._range(link)
            findings = list(verification.compare(link, compared.leaves, compared.archived))
        return compared, findings

    async def _range(self, link: Link) -> _Range:
        """At most one row more than there should be: then one of them was inserted."""
        rows: list[Row] = []
        leaves: list[Leaf] = []
        first, last, count = link.seal.first_sequence, link.seal.last_sequence, link.seal.row_count

        async def read(connection: Connection) -> tuple[list[Row], dict[str, bytes]]:
            async with self._lane.step(connection):
                size = max(min(ROWS_AT_ONCE, count + 1 - len(rows)), 1)
                part = await select_rows(connection, first, last, size)
                return part, await select_keys(connection, _users(part))

        while len(rows) <= count:
            part, keys = await self._lane.read("rows_to_verify", read)
            if not part:
                break
            rows += part
            leaves += await leaves_of(part, keys)
            first = part[-1].sequence + 1
        return _Range(rows, leaves, await self._archived(link) if len(rows) < count else set())

    async def _archived(self, link: Link) -> set[int]:
        async def find(connection: Connection) -> set[int]:
            return await select_archived(connection, link.seal.number)

        return await self._lane.read("archived_numbers", find)

    async def _unrecorded(self, pseudonyms: dict[str, Row]) -> list[Finding]:
        """Rows of which something was erased, and no event says that their user was."""
        if not pseudonyms:
            return []

        async def find(connection: Connection) -> set[str]:
            return await _select_erased(connection, pseudonyms)

        recorded = await self._lane.read("erased_users", find)
        return [
            Finding(Fault.ERASURE_UNRECORDED, 0, row.sequence)
            for name, row in pseudonyms.items()
            if name not in recorded
        ][:FINDINGS_MAX]

    async def _before_the_first(self) -> list[FoundEvent]:
        async def find(connection: Connection) -> list[Row]:
            return await select_rows(connection, -(2**63), 0, 1)

        rows = await self._lane.read("rows_before_seals", find)
        return [_found(Finding(Fault.ROW_INSERTED, 0, it.sequence), rows) for it in rows]

    async def _count_after(self, sequence: int) -> int:
        async def count(connection: Connection) -> int:
            return await _count_rows_after(connection, sequence)

        return await self._lane.read("unsealed_rows", count)

    async def _count_unnumbered(self) -> int:
        counted, page, pages = 0, 0, 1

        async def count(connection: Connection) -> tuple[int, int]:
            async with self._lane.step(connection):
                return await _count_unnumbered_in(connection, page, page + PAGES_AT_ONCE)

        while page < pages:
            async with self._lane.turn(WHOSE_TURN):
                found, pages = await self._lane.read("unnumbered_rows", count)
            counted += found
            page += PAGES_AT_ONCE
        return counted

    async def link(self, number: int) -> Link:
        """The seal of this number, without its leaves. Raises SealNotFound."""

        async def find(connection: Connection) -> list[Link]:
            return await select_seals(connection, number, 1)

        found = await self._lane.read("seal", find)
        if not found or found[0].seal.number != number:
            raise SealNotFound
        return found[0]

    async def prove(
        self, event_id: UUID, business_id: str, until: int
    ) -> tuple[InclusionProof, Link]:
        """The proof that an event is in its seal, and the seal up to which it leads.

        `until`: the number of that, or 0 for the one of the event. Raises EventNotFound, Archived,
        EventNotSealed, SealNotFound, and LedgerChanged where there is nothing to prove any more.
        """

        async def find(
            connection: Connection,
        ) -> tuple[Row, Link, dict[str, bytes], list[Link]]:
            if not await _is_of_business(connection, event_id, business_id):
                file_name = await select_archive(connection, event_id, business_id)
                raise EventNotFound if file_name is None else Archived(archive=file_name)
            rows = await select_rows_by_id(connection, [event_id])
            if not rows:
                raise EventNotSealed
            row = rows[0]
            link = await select_seal_of(connection, row.sequence)
            if link is None:
                raise EventNotSealed
            number = link.seal.number
            if until and not number <= until < number + LATER_SEALS_MAX:
                raise SealNotFound
            count = max(until - number, 0) + 1
            around = await select_seals(connection, max(number - 1, 1), count + (number > 1))
            return row, link, await select_keys(connection, _users([row])), around

        row, link, keys, around = await self._lane.read("proof", find)
        number = link.seal.number
        wanted = [*([number - 1] if number > 1 else []), *range(number, max(until, number) + 1)]
        if [it.seal.number for it in around] != wanted:
            raise SealNotFound
        head = await self.head()
        before = position_of(around[0]) if number > 1 else Position(0, 0, begin_chain(head.log_id))
        ((_, leaf),) = await leaves_of([row], keys)
        leaves = (
            unpack_leaves(link.seal.first_sequence, link.leaves) if is_intact(before, link) else []
        )
        if leaf == NO_LEAF or (row.sequence, leaf) not in leaves:
            raise LedgerChanged
        index = leaves.index((row.sequence, leaf))
        proof = InclusionProof(
            facts=row.facts,
            parts=opened_parts(row, keys),
            index=index,
            path=inclusion_path([it for _, it in leaves], index),
            seal=link.seal,
            chain_before=before.chain,
            later_seals=[it.seal for it in around if it.seal.number > number],
        )
        return proof, around[-1]


def _users(rows: Sequence[Row]) -> set[str]:
    """Whose keys are needed; those of a malformed row are of no use."""
    users: set[str] = set()
    for row in rows:
        try:
            users |= users_of([row])
        except MalformedError:
            continue
    return users


def _pseudonyms(row: Row) -> list[str]:
    """What stands for users who were erased from this row."""
    try:
        erased = unpacked(row.commitments)
    except MalformedError:
        return []
    names = [row.user_id] if erased.user is not None else []
    return [*names, row.other_user_id] if erased.other is not None else names


def _not_blank(link: Link, rows: Iterable[Row]) -> list[Finding]:
    """The first row of which something was erased that has something else there now."""
    for row in rows:
        try:
            erased = unpacked(row.commitments)
            blank = erased.user is None or _is_blank(decode(USER_PART, row.user))
            if erased.other is not None and row.other is not None:
                blank = blank and _is_blank(decode(OTHER_PART, row.other))
        except MalformedError:
            continue  # found otherwise
        if not blank:
            return [Finding(Fault.ROW_CHANGED, link.seal.number, row.sequence)]
    return []


def _is_blank(part: Mapping[str, Any]) -> bool:
    """Whether there are only names that stand for others."""
    return all(
        not value or (name.endswith("_id") and value.startswith(ERASED))
        for name, value in part.items()
        if name != "fingerprint"
    )


def _found(finding: Finding, rows: Iterable[Row]) -> FoundEvent:
    ids = (UUID(bytes=row.event_id) for row in rows if row.sequence == finding.sequence)
    return FoundEvent(finding=finding, event_id=next(ids, None))


SELECT_ERASED: Final = """
SELECT DISTINCT name FROM unnest(%s::text[]) AS erased (name)
WHERE EXISTS (SELECT FROM redemption_audit WHERE user_id = name AND type = %s)
"""


async def _select_erased(connection: Connection, names: Collection[str]) -> set[str]:
    cursor = await connection.execute(SELECT_ERASED, [text_array(names), EventType.USER_ERASED])
    return {name for (name,) in await cursor.fetchall()}


COUNT_ROWS_AFTER: Final = "SELECT count(*) FROM redemption_audit WHERE sequence > %s"


async def _count_rows_after(connection: Connection, sequence: int) -> int:
    cursor = await connection.execute(COUNT_ROWS_AFTER, [sequence])
    row = await cursor.fetchone()
    return row[0] if row is not None else 0


# By their place in the table: nothing else leads to them, and each step is small.
COUNT_UNNUMBERED: Final = """
SELECT (
    SELECT count(*) FROM redemption_audit
    WHERE ctid >= %s::tid AND ctid < %s::tid AND sequence IS NULL
), pg_relation_size('redemption_audit') / current_setting('block_size')::bigint
"""


async def _count_unnumbered_in(connection: Connection, page: int, end: int) -> tuple[int, int]:
    """The rows without a number in these pages of the table, and how many pages it has."""
    cursor = await connection.execute(COUNT_UNNUMBERED, [f"({page},0)", f"({end},0)"])
    row = await cursor.fetchone()
    return (row[0], row[1]) if row is not None else (0, 0)


IS_OF_BUSINESS: Final = """
SELECT FROM redemption_audit AS event
WHERE event_id = %(event_id)s AND (%(business_id)s = '' OR EXISTS (
    SELECT FROM coupon_books AS book
    WHERE book.book_id = event.book_id AND book.business_id = %(business_id)s))
"""


async def _is_of_business(connection: Connection, event_id: UUID, business_id: str) -> bool:
    """Whether there is this event, and the business sees it; empty: one that sees all."""
    parameters = {"event_id": event_id, "business_id": business_id}
    cursor = await connection.execute(IS_OF_BUSINESS, parameters)
    return await cursor.fetchone() is not None
