"""All codes of a book, page by page, for a caller who wants every one of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from coupon_service.model import Book, Code, CodeState
from coupon_service.store.books import select_book
from coupon_service.store.bulk.code_details import CodeDetails, select_details
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.keyset import Position
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.reads import select_code_page

EXPORT_PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class ExportedPage:
    """Codes of a book, and where to go on. `details`: by code, where they were asked for, of those
    that have any."""

    book: Book
    codes: list[Code]
    after: Position | None
    details: Mapping[str, CodeDetails]


class CodeExporter:
    """Reads the codes of whole books."""

    def __init__(self, lane: BulkLane) -> None:
        self._lane = lane

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

        async def work(connection: Connection) -> ExportedPage:
            async with self._lane.step(connection):
                book = await select_book(connection, book_id, business_id)
                codes, end = await select_code_page(connection, book, state, EXPORT_PAGE, after)
            details: Mapping[str, CodeDetails] = {}
            if with_details:
                async with self._lane.step(connection):
                    details = await select_details(connection, book_id, codes)
            return ExportedPage(book, codes, end, details)

        more = True
        while more:
            async with self._lane.turn(business_id):
                page = await self._lane.read("export_codes", work)
            after = page.after
            more = after is not None
            yield page
