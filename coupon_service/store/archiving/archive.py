"""Archives the ledger of closed books: writes, verifies, and only then deletes, in chunks.

Each step is recorded, so that whoever comes after one that was cut off goes on with it:

1. the file is written under a temporary name, and verified;
2. the archive is *written*: roll-backs and adjustments of what it has are refused from then on, and
   those that were under way come to their end; if there were any, it is written anew;
3. the file is verified once more, or written anew if it was lost, and the archive is *deleting*:
   opening balances stand for its events, whether they are still there or not;
4. the events are deleted, seal by seal, and each leaves its id.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from hashlib import file_digest
from pathlib import Path
from time import monotonic, sleep
from typing import Any, Final
from uuid import UUID

from coupon_service.audit import leaves
from coupon_service.audit.archive_files import SUFFIX, ArchiveWriter, Entry, Header
from coupon_service.audit.archive_proofs import ArchiveError, Verified, verify_archive
from coupon_service.audit.sealed_parts import PARTS, SealedPart, erased_part, pair_key, seal_part
from coupon_service.audit.seals import Link, Position, begin_chain, unpack_leaves
from coupon_service.model import EventType
from coupon_service.store.archiving import events, records
from coupon_service.store.archiving.book_events import insert_book_event
from coupon_service.store.archiving.orders import keep_orders
from coupon_service.store.archiving.records import (
    Archive,
    ArchiveState,
    CannotArchiveError,
    ClosedBook,
    Connection,
    HeldUpError,
)

CHUNK: Final = 5_000
"""Events that are deleted in one transaction, if no seal has more."""

WAIT_S: Final = 600.0
WAIT_POLL_S: Final = 0.05

Report = Callable[[str, int, int], None]
"""Takes what is being done, how many events it was done for, and of how many."""


def silent(_what: str, _done: int, _count: int) -> None:
    """Reports nothing."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A book that is to be archived; `why_not`: what is in the way, empty where nothing is."""

    book: ClosedBook
    why_not: str = ""


def plan(
    database_url: str, closed_before: datetime, books: Iterable[UUID] | None = None
) -> list[Plan]:
    """The books that are closed for long enough and have events to archive.

    Raises Contention and DatabaseUnavailable.
    """
    with records.connected(database_url) as connection:
        return _plan(connection, closed_before, books)


def _plan(
    connection: Connection, closed_before: datetime, books: Iterable[UUID] | None
) -> list[Plan]:
    wanted = None if books is None else list(books)
    found = records.select_closed_books(connection, closed_before, wanted)
    return [Plan(it, _why_not(it)) for it in found if it.events]


def _why_not(book: ClosedBook) -> str:
    if book.unnumbered:
        return f"{book.unnumbered} of its events are from before events had numbers"
    if book.unsealed:
        return f"{book.unsealed} of its events are not sealed yet"
    return ""


def archive(
    database_url: str,
    folder: Path,
    closed_before: datetime,
    books: Iterable[UUID] | None = None,
    report: Report = silent,
) -> Iterator[Archive]:
    """Archives the books that `plan` has nothing against, each in a file in the folder, and goes on
    with what was cut off; yields each archive that is done.

    What is in the way of one book keeps no other from being archived. Raises CannotArchiveError
    after all of them, Contention, DatabaseUnavailable, and OSError for the files.
    """
    with records.connected(database_url) as connection:
        if (file_name := records.restoring(connection)) is not None:
            raise CannotArchiveError(f"Finish the restoration of {file_name} first.")
        failures: list[str] = []
        for begun in _begun(connection, closed_before, books):
            try:
                done = _Archiving(connection, folder, report).finish(begun)
            except HeldUpError:
                raise
            except CannotArchiveError as error:
                failures.append(f"Book {begun.book_id} is not archived: {error}")
            else:
                yield done
        if failures:
            raise CannotArchiveError("\n".join(failures))


def _begun(
    connection: Connection, closed_before: datetime, books: Iterable[UUID] | None
) -> Iterator[Archive]:
    """What was cut off, and then an archive for each book that has nothing against it."""
    unfinished = {it.book_id: it for it in records.select_unfinished(connection)}
    # One that is still being written is begun anew, where nothing is against it.
    written = [it for it in unfinished.values() if it.state is not ArchiveState.WRITING]
    yield from written
    for planned in _plan(connection, closed_before, books):
        book_id = planned.book.book_id
        if not planned.why_not and all(it.book_id != book_id for it in written):
            begun = unfinished.get(book_id)
            yield begun or records.insert_archive(connection, book_id, SUFFIX)


class _Archiving:
    """Takes an archive from the state that it is in to the last one."""

    def __init__(self, connection: Connection, folder: Path, report: Report) -> None:
        self._connection = connection
        self._folder = folder
        self._report = report
        self._written: Verified | None = None  # what this has verified itself

    def finish(self, archive: Archive) -> Archive:
        steps = {
            ArchiveState.WRITING: self._write,
            ArchiveState.WRITTEN: self._verify,
            ArchiveState.DELETING: self._delete,
        }
        while archive.state in steps:
            steps[archive.state](archive)
            changed = records.select_archive(self._connection, archive.number)
            if changed is None:
                raise CannotArchiveError(f"{archive.file_name} is not an archive any more.")
            archive = changed
        return archive

    # --- written --------------------------------------------------------------------------------

    def _write(self, archive: Archive) -> None:
        path = self._folder / archive.file_name
        part = path.with_suffix(".part")
        with self._connection.transaction(), part.open("w+b") as file:
            self._connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._write_events(archive, file)
            file.flush()
            os.fsync(file.fileno())
        with part.open("rb") as file:
            verified = self._written = self._verified(archive, file)
        part.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        trailer = verified.trailer
        values = {
            "digest": verified.digest,
            "row_count": trailer.row_count,
            "first_sequence": trailer.first_sequence,
            "last_sequence": trailer.last_sequence,
        }
        with self._connection.transaction():
            records.set_written(self._connection, archive, values, trailer.balance)
            records.mark_books(self._connection, archive, trailer.last_sequence)

    def _write_events(self, archive: Archive, file: Any) -> None:
        connection = self._connection
        log_id, newest, until = events.select_head(connection)
        (book,) = records.select_closed_books(
            connection, datetime.max.replace(tzinfo=archive.create_time.tzinfo), [archive.book_id]
        )
        if (why_not := _why_not(book)) or not book.events:
            raise CannotArchiveError(f"{why_not or 'It has no events'}.")
        header = Header(
            log_id,
            archive.number,
            book.book_id,
            book.business_id,
            book.name,
            archive.create_time,
        )
        writer = ArchiveWriter(file, header)
        first: Link | None = None
        for link, rows in _by_seal(connection, archive.book_id, until):
            first = first or link
            sealed = unpack_leaves(link.seal.first_sequence, link.leaves)
            entries = list(_entries(connection, sealed, rows))
            try:
                writer.add_segment(link.seal.number, [leaf for _, leaf in sealed], entries)
            except ValueError as error:
                raise CannotArchiveError(str(error)) from error
            self._report("written", writer.row_count, book.events)
        if first is None:
            raise CannotArchiveError("It has no events.")
        before = _position_before(connection, log_id, first)
        writer.end(before, events.select_seals(connection, first.seal.number, newest))

    def _verified(self, archive: Archive, file: Any) -> Verified:
        """Raises CannotArchiveError unless the file is that of the archive, and proves itself."""
        try:
            verified = verify_archive(
                file, lambda done: self._report("verified", done, archive.row_count or done)
            )
        except ArchiveError as error:
            raise CannotArchiveError(f"{archive.file_name}: {error}") from error
        header = verified.header
        if (header.number, header.book_id) != (archive.number, archive.book_id):
            raise CannotArchiveError(f"{archive.file_name} is the file of another archive.")
        if archive.digest not in (None, verified.digest):
            raise CannotArchiveError(f"{archive.file_name} is not the file that was written.")
        return verified

    # --- verified -------------------------------------------------------------------------------

    def _verify(self, archive: Archive) -> None:
        connection = self._connection
        wait_for_others(connection)
        # Another book may have got codes of this one from somebody who had not seen the mark.
        records.mark_books(connection, archive, archive.last_sequence)
        if events.count_late(connection, archive.book_id, archive.last_sequence):
            self._begin_anew(archive)
            raise CannotArchiveError("Redemptions were changed meanwhile: archive it again.")
        try:
            verified = self._verified_file(archive)
        except CannotArchiveError:
            if self._written is not None:
                raise
            self._begin_anew(archive)  # the ledger still has all of it
            return
        codes = (
            (code, it.redemptions, it.assignments, it.user_redemptions)
            for code, it in verified.balances.of_codes.items()
        )
        described = {
            "archive": archive.number,
            "file": archive.file_name,
            "sha256": verified.digest.hex(),
            "rows": archive.row_count,
            "first_sequence": verified.trailer.first_sequence,
            "last_sequence": verified.trailer.last_sequence,
            "balance": verified.trailer.balance.as_json(),
            "codes_sha256": verified.trailer.codes_digest.hex(),
        }
        with connection.transaction():
            records.delete_contents(connection, archive)
            records.insert_contents(connection, archive, verified.sequences, codes)
            # Before events go, by which EraseUser would find them.
            records.move_bearers(connection, archive)
            insert_book_event(connection, archive, EventType.BOOK_ARCHIVED, described)
            records.set_state(connection, archive, ArchiveState.DELETING)

    def _begin_anew(self, archive: Archive) -> None:
        with self._connection.transaction():
            records.unmark_book(self._connection, archive)
            records.begin_anew(self._connection, archive)

    def _verified_file(self, archive: Archive) -> Verified:
        """Of one that this has verified before only the digest is compared."""
        try:
            with (self._folder / archive.file_name).open("rb") as file:
                known = self._written
                if known is not None and file_digest(file, "sha256").digest() == known.digest:
                    return known
                file.seek(0)
                self._written = self._verified(archive, file)
                return self._written
        except FileNotFoundError:
            raise CannotArchiveError(
                f"{archive.file_name} is not in {self._folder}, where it is needed to go on."
            ) from None

    # --- deleted --------------------------------------------------------------------------------

    def _delete(self, archive: Archive) -> None:
        self._verified_file(archive)
        done = 0
        for chunk in _chunks(records.select_seals_of(self._connection, archive)):
            with self._connection.transaction():
                # Nobody is erased between what is kept of an event and that it is gone.
                events.lock_erasures(self._connection)
                for seal, _ in chunk:
                    keep_orders(self._connection, archive, seal)
                    records.delete_archived(self._connection, archive, seal)
            done += sum(count for _, count in chunk)
            self._report("deleted", done, archive.row_count)
        records.set_state(self._connection, archive, ArchiveState.DONE)


def _chunks(seals: Iterable[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    chunk: list[tuple[int, int]] = []
    for seal, count in seals:
        if chunk and sum(it for _, it in chunk) + count > CHUNK:
            yield chunk
            chunk = []
        chunk.append((seal, count))
    if chunk:
        yield chunk


Columns = dict[str, Any]


def _by_seal(
    connection: Connection, book_id: UUID, until: int
) -> Iterator[tuple[Link, list[Columns]]]:
    """The events of the book, by their seals. Raises CannotArchiveError."""
    link: Link | None = None
    rows: list[Columns] = []
    for row in events.select_events(connection, book_id, until):
        sequence = row["sequence"]
        if link is not None and sequence > link.seal.last_sequence:
            yield link, rows
            link, rows = None, []
        if link is None:
            link = events.select_link(connection, sequence)
            if link is None:
                raise CannotArchiveError(f"Event {sequence} is in no seal.")
        rows.append(row)
    if link is not None:
        yield link, rows


def _entries(
    connection: Connection, sealed: Iterable[tuple[int, bytes]], rows: list[Columns]
) -> Iterator[Entry]:
    """The events of a seal as they are archived. Raises CannotArchiveError."""
    places = {sequence: (index, leaf) for index, (sequence, leaf) in enumerate(sealed)}
    users = {row[name] or "" for row in rows for name in ("user_id", "other_user_id")}
    keys = events.select_keys(connection, [*users, leaves.NOBODY])
    for row in rows:
        index, leaf = places.get(row["sequence"], (0, b""))
        try:
            entry = _entry(row, index, keys)
        except KeyError:
            raise CannotArchiveError(f"The key for event {row['sequence']} is missing.") from None
        if entry.leaf != leaf:
            raise CannotArchiveError(
                f"Event {row['sequence']} is not as it was sealed: see coupon-service audit verify."
            )
        yield entry


def _entry(row: Columns, index: int, keys: Mapping[str, bytes]) -> Entry:
    made = leaves.row_of(row, row["commitments"])
    sealed: list[SealedPart] = []
    values = (made.user, made.other, made.pair)
    for which, part, gone in zip(PARTS, values, leaves.unpacked(made.commitments), strict=True):
        if part is None:
            break
        if gone is not None:
            sealed.append(erased_part(part))
            continue
        user, other = keys.get(made.user_id, b""), keys.get(made.other_user_id, b"")
        key = (user, other, pair_key(user, other))[len(sealed)]
        sealed.append(seal_part(key, which, made.event_id, part))
    return Entry(
        index=index,
        facts=made.facts,
        commitments=leaves.commitments_of(made, keys),
        sealed=sealed,
        has_order=row["order_id"] is not None,
    )


def _position_before(connection: Connection, log_id: UUID, link: Link) -> bytes:
    if link.seal.number == 1:
        return begin_chain(log_id)
    before: Position | None = events.select_position(connection, link.seal.number - 1)
    if before is None:
        raise CannotArchiveError(f"Seal {link.seal.number - 1} is missing.")
    return before.chain


NEXT_ID: Final = "SELECT pg_current_xact_id()::text::bigint"
OLDEST_ID: Final = "SELECT pg_snapshot_xmin(pg_current_snapshot())::text::bigint"


def wait_for_others(connection: Connection) -> None:
    """Waits until all transactions have ended that may not have seen that the book is marked.

    Raises HeldUpError when one takes too long.
    """
    deadline_s = monotonic() + WAIT_S
    (next_id,) = connection.execute(NEXT_ID).fetchall()
    while connection.execute(OLDEST_ID).fetchall()[0] < next_id:
        if monotonic() > deadline_s:
            raise HeldUpError(
                "A transaction that was begun before does not end; archive again when it has."
            )
        sleep(WAIT_POLL_S)
