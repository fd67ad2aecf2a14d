"""All codes of a book, page by page, for a caller who wants every one of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, replace
from typing import Final
from uuid import UUID

from coupon_service.model import Book, Code, CodeState
from coupon_service.store.books import select_book
from coupon_service.store.bulk.code_details import CodeDetails, select_details
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.keyset import Position
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.reads import select_code_page
from coupon_service.store.replica import NearReads

EXPORT_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class ExportedPage:
    """Codes of a book, and where to go on. `details`: by code, where they were asked for, of those
    that have any."""

    book: Book
    codes: list[Code]
    after: Position | None
    details: Mapping[str, CodeDetails]
    lag_ms: int | None = None
    """Where a read replica has answered: for how long the page may be behind."""


class CodeExporter:
    """Reads the codes of whole books."""

    def __init__(self, lanes: NearReads[BulkLane]) -> None:
        self._lanes = lanes

    async def pages(
        self,
        book_id: UUID,
        business_id: str,
        state: CodeState | None,
        after: Position | None,
        *,
        with_details: bool = False,
    ) -> AsyncGenerator[ExportedPage]:
        """As Reads.codes, page after page to the end."""

        async def page_of(lane: BulkLane) -> ExportedPage:
            async def work(connection: Connection) -> ExportedPage:
                async with lane.step(connection):
                    book = await select_book(connection, book_id, business_id)
                    codes, end = await select_code_page(connection, book, state, EXPORT_PAGE, after)
                details: Mapping[str, CodeDetails] = {}
                if with_details:
                    async with lane.step(connection):
                        details = await select_details(connection, book_id, codes)
                return ExportedPage(book, codes, end, details)

            async with lane.turn(business_id):
                return await lane.read("export_codes", work)

        more = True
        while more:
            page, lag_ms = await self._lanes.ask(page_of)
            after = page.after
            more = after is not None
            yield replace(page, lag_ms=lag_ms)
