"""What the ledger says of archives themselves: so what they come to is sealed as well."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from coupon_service import __version__
from coupon_service.model import Event, EventType, event_id
from coupon_service.model.identity import bucket_of_book, fingerprint
from coupon_service.store.archiving.records import Archive, Connection
from coupon_service.store.events import EVENT_ROWS, INSERT_EVENTS

CALLER: Final = "coupon-service audit"

NOW: Final = "SELECT clock_timestamp()"


def insert_book_event(
    connection: Connection, archive: Archive, event_type: EventType, metadata: Mapping[str, Any]
) -> None:
    """Writes an event of the book of an archive. In a transaction."""
    ((now,),) = connection.execute(NOW).fetchall()
    event = _event(archive, event_type, now, json.dumps(metadata))
    connection.execute(INSERT_EVENTS, EVENT_ROWS.array_parameters([event]))


def _event(archive: Archive, event_type: EventType, now: datetime, metadata: str) -> Event:
    attempt = archive.book_id, archive.number, now.isoformat()
    return Event(
        event_id=event_id(bucket_of_book(archive.book_id), event_type, *attempt),
        type=event_type,
        event_time=now,
        book_id=archive.book_id,
        caller=CALLER,
        peer="",
        user_agent=f"coupon-service/{__version__}",
        request_id=f"archive-{archive.number}",
        fingerprint=fingerprint(*attempt),
        metadata=metadata,
    )
