"""Which events of the ledger are in archives: their leaves are sealed, and their rows are gone."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from coupon_service.store.pipeline import Connection

SELECT_ARCHIVED: Final = "SELECT unnest(sequences) FROM coupon_archived_ranges WHERE seal = %s"


async def select_archived(connection: Connection, seal_number: int) -> set[int]:
    """The numbers of a seal whose events are in an archive, or are on their way there or back."""
    cursor = await connection.execute(SELECT_ARCHIVED, (seal_number,))
    return {sequence for (sequence,) in await cursor.fetchall()}


SELECT_ARCHIVE: Final = """
SELECT file_name
FROM coupon_archived_events JOIN coupon_audit_archives USING (archive)
JOIN coupon_books AS book USING (book_id)
WHERE event_id = %(event_id)s AND (%(business_id)s = '' OR book.business_id = %(business_id)s)
"""


async def select_archive(connection: Connection, event_id: UUID, business_id: str) -> str | None:
    """The file that has an event of the business, or of any with an empty one."""
    parameters = {"event_id": event_id, "business_id": business_id}
    row = await (await connection.execute(SELECT_ARCHIVE, parameters)).fetchone()
    return None if row is None else row[0]
