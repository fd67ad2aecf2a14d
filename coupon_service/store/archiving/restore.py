"""Restores archives: puts their events back into the ledger, with their numbers.

What was erased meanwhile comes back erased: its values cannot be read without the key of the user,
and the pseudonym stands in their place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import IO, Any, Final
from uuid import UUID

from coupon_service.audit import leaves
from coupon_service.audit import records as values_of
from coupon_service.audit.archive_files import ArchiveError, Entry, Segment, read_sections
from coupon_service.audit.archive_proofs import Verified, verify_archive
from coupon_service.audit.sealed_parts import OPEN, PARTS, SealedPart, key_id, open_part, pair_key
from coupon_service.model import EventType
from coupon_service.store.archiving import events, records
from coupon_service.store.archiving.archive import Report, silent
from coupon_service.store.archiving.book_events import insert_book_event
from coupon_service.store.archiving.orders import delete_orders, select_erased_orders
from coupon_service.store.archiving.records import (
    Archive,
    ArchiveState,
    CannotArchiveError,
    Connection,
)

CHUNK: Final = 2_000

Columns = dict[str, Any]


def restore(database_url: str, file: IO[bytes], report: Report = silent) -> Archive:
    """Puts the events of an archive back; goes on where it was cut off. Returns the archive.

    Raises CannotArchiveError, Contention and DatabaseUnavailable.
    """
    with records.connected(database_url) as connection:
        try:
            verified = verify_archive(file, lambda done: report("verified", done, done))
        except ArchiveError as error:
            raise CannotArchiveError(str(error)) from error
        archive = _archive_of(connection, verified)
        if archive.state is ArchiveState.RESTORED:
            if (file_name := records.archived_since(connection, archive)) is not None:
                raise CannotArchiveError(f"It was restored, and {file_name} has its events now.")
            return archive
        records.set_state(connection, archive, ArchiveState.RESTORING)
        keys: _Keys | None = None
        done = 0
        # A redemption comes back after what it came to: nobody may take one for good that was
        # rolled back.
        for redemptions in (False, True):
            for chunk in _chunks(file, redemptions=redemptions):
                with connection.transaction():
                    erasures = events.lock_erasures(connection)
                    if keys is None or keys.erasures != erasures:
                        keys = _Keys.of(connection, erasures)
                    ids = [it.values["event_id"] for it in chunk] if redemptions else []
                    erased = select_erased_orders(connection, ids)
                    rows = [_columns(entry, keys, erased) for entry in chunk]
                    events.restore_events(connection, archive.number, rows)
                    delete_orders(connection, ids)
                done += len(rows)
                report("restored", done, archive.row_count)
        described = {"archive": archive.number, "rows": archive.row_count}
        with connection.transaction():
            events.lock_erasures(connection)
            if events.is_erasing(connection):
                # It may be past the events of an assignment, which it would not find any more.
                raise CannotArchiveError("A user is being erased: restore again when that is done.")
            records.return_bearers(connection, archive)
            records.delete_contents(connection, archive)
            records.unmark_book(connection, archive)
            insert_book_event(connection, archive, EventType.BOOK_RESTORED, described)
            records.set_state(connection, archive, ArchiveState.RESTORED)
        return archive


def _archive_of(connection: Connection, verified: Verified) -> Archive:
    header = verified.header
    log_id, _, _ = events.select_head(connection)
    archive = records.select_archive(connection, header.number)
    if archive is None or log_id != header.log_id or archive.book_id != header.book_id:
        raise CannotArchiveError("The archive is not one of this database.")
    if archive.digest != verified.digest:
        raise CannotArchiveError(f"It is not the file that was written as {archive.file_name}.")
    if archive.state < ArchiveState.DONE:
        raise CannotArchiveError("The archive is not done: run coupon-service audit archive again.")
    return archive


def _chunks(file: IO[bytes], *, redemptions: bool) -> Iterator[Sequence[Entry]]:
    """The events that are redemptions, or those that are not, in chunks."""
    file.seek(0)
    chunk: list[Entry] = []
    for section in read_sections(file):
        if not isinstance(section, Segment):
            continue
        chunk += [
            it for it in section.entries if (it.values["type"] == EventType.REDEEMED) is redemptions
        ]
        if len(chunk) >= CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


SELECT_PSEUDONYMS: Final = """
SELECT destroyed.key_id, pseudonym FROM coupon_erased_users, unnest(key_ids) AS destroyed (key_id)
"""


@dataclass(frozen=True, slots=True)
class _Keys:
    """The keys of users by their ids, and the pseudonyms of those whose keys were destroyed.

    `erasures`: how many chunks had been erased by then, in all.
    """

    keys: Mapping[bytes, bytes]
    pseudonyms: Mapping[bytes, str]
    erasures: int

    @classmethod
    def of(cls, connection: Connection, erasures: int) -> _Keys:
        """In a transaction that keeps `erasures` as they are."""
        keys = {key_id(it): it for it in events.all_keys(connection)}
        pseudonyms = dict(connection.execute(SELECT_PSEUDONYMS).fetchall())
        return cls(keys, pseudonyms, erasures)

    def opened(
        self, place: int, sealed: SealedPart, owners: Sequence[SealedPart], event_id: bytes
    ) -> tuple[Columns, bool]:
        """The values of a part, and whether they are what is left of erased ones.

        `owners`: the parts of the users whose keys are needed for it.
        """
        layout, which = leaves.PARTS[place], PARTS[place]
        if sealed.key_id == OPEN:
            return values_of.decode(layout, sealed.content), True
        keys = [self.keys.get(it.key_id) for it in owners]
        if any(it is None for it in keys):
            return self._erased(sealed, which), True
        found = [it for it in keys if it is not None]
        key = found[0] if len(found) == 1 else pair_key(*found)
        return values_of.decode(layout, open_part(key, which, event_id, sealed)), False

    def _erased(self, sealed: SealedPart, which: bytes) -> Columns:
        if which == PARTS[2]:
            return {"fingerprint": 0}
        pseudonym = self.pseudonyms.get(sealed.key_id)
        if pseudonym is None:
            raise CannotArchiveError(
                "The key of a user is gone, and nothing says that the user was erased."
            )
        return {"user_id" if which == PARTS[0] else "other_user_id": pseudonym}


def _columns(entry: Entry, keys: _Keys, erased_orders: Mapping[UUID, Columns]) -> Columns:
    """The columns of the ledger that an archived event had, with what was erased since erased.

    `erased_orders`: of redemptions whose orders were. The key of their user may still be there: the
    erasure is under way then, and past them.
    """
    facts = entry.values
    event_id = facts["event_id"].bytes
    owners = [*([it] for it in entry.sealed[:2]), entry.sealed[:2]]
    opened = [
        keys.opened(place, it, owners[place], event_id) for place, it in enumerate(entry.sealed)
    ]
    if (of_order := erased_orders.get(facts["event_id"])) is not None:
        opened[0] = of_order, True
    columns: Columns = {**facts, "peer": None, "user_agent": None}
    for values, _ in opened:
        columns |= {name: it for name, it in values.items() if it is not None}
    names = {leaves.CALLER_IS_USER: "user_id", leaves.CALLER_IS_OTHER_USER: "other_user_id"}
    if facts["caller_is"] in names:
        columns["caller"] = columns[names[facts["caller_is"]]]
    columns["peer"] = columns["peer"] or ""
    columns["user_agent"] = columns["user_agent"] or ""
    columns.setdefault("fingerprint", 0)
    erased = [
        it if gone else None for it, (_, gone) in zip(entry.commitments, opened, strict=False)
    ]
    if any(erased):
        columns["commitments"] = leaves.Commitments(*erased).packed()
    return {name: columns.get(name) for name in events.COLUMNS}
