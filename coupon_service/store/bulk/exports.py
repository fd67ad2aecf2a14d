"""All codes of a book, page by page, for a caller who wants every one of them."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Final
from uuid import UUID

from coupon_service.model import Book, Code, CodeState
from coupon_service.store.books import select_book
from coupon_service.store.bulk.lane import BulkLane
from coupon_service.store.keyset import Position
from coupon_service.store.pipeline import Connection
from coupon_service.store.queries.reads import select_code_page

EXPORT_PAGE: Final = 1_000


class CodeExporter:
    """Reads the codes of whole books."""

    def __init__(self, lane: BulkLane) -> None:
        self._lane = lane

    async def pages(
        self, book_id: UUID, business_id: str, state: CodeState | None, after: Position | None
    ) -> AsyncGenerator[tuple[Book, list[Code], Position | None]]:
        """As Reads.codes, page after page to the end."""

        async def work(connection: Connection) -> tuple[Book, list[Code], Position | None]:
            async with self._lane.step(connection):
                book = await select_book(connection, book_id, business_id)
                page = await select_code_page(connection, book, state, EXPORT_PAGE, after)
            return book, *page

        more = True
        while more:
            async with self._lane.turn(business_id):
                book, codes, after = await self._lane.read("export_codes", work)
            more = after is not None
            yield book, codes, after
