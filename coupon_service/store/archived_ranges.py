"""Which numbers of the ledger are in archives: their leaves are sealed, and their rows are gone."""

from __future__ import annotations

from typing import Final

from coupon_service.store.pipeline import Connection

SELECT_ARCHIVED: Final = "SELECT unnest(sequences) FROM coupon_archived_ranges WHERE seal = %s"


async def select_archived(connection: Connection, seal_number: int) -> set[int]:
    """The numbers of a seal whose events are in an archive, or are on their way there or back."""
    cursor = await connection.execute(SELECT_ARCHIVED, (seal_number,))
    return {sequence for (sequence,) in await cursor.fetchall()}
