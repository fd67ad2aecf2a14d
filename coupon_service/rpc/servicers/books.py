"""CouponBookService."""

# ruff: noqa: ARG002, N802 - the names and arguments are those of the contract

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from coupon_service.model import Book, EventType
from coupon_service.rpc.context import current
from coupon_service.rpc.convert import books as convert
from coupon_service.rpc.freshness import tell_lag
from coupon_service.rpc.paging import PageTokens, page_within_bounds
from coupon_service.rules import effective_book_state
from coupon_service.store.books import Books, book_position
from coupon_service.store.replica import NearReads
from coupon_service.v1 import coupon_book_service_pb2 as pb
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceServicer


class CouponBookServicer(CouponBookServiceServicer):
    """Answers with what Books does."""

    def __init__(
        self,
        books: Books,
        near_books: NearReads[Books],
        page_tokens: PageTokens,
        now: Callable[[], datetime],
    ) -> None:
        self._books = books
        self._near_books = near_books
        self._page_tokens = page_tokens
        self._now = now

    async def CreateCouponBook(
        self, request: pb.CreateCouponBookRequest, context: Any
    ) -> pb.CreateCouponBookResponse:
        book, call, fingerprint, earlier = convert.read_create(request, current(), self._now())
        book, replayed = await self._books.create(book, call, book.book_id, fingerprint, earlier)
        (message,) = await self._messages([book])
        return pb.CreateCouponBookResponse(coupon_book=message, replayed=replayed)

    async def GetCouponBook(
        self, request: pb.GetCouponBookRequest, context: Any
    ) -> pb.GetCouponBookResponse:
        book_id = convert.read_book_id(request)
        book = await self._books.get(book_id, current().business_id)
        (message,) = await self._messages([book])
        return pb.GetCouponBookResponse(coupon_book=message)

    async def ListCouponBooks(
        self, request: pb.ListCouponBooksRequest, context: Any
    ) -> pb.ListCouponBooksResponse:
        business_id, state, page = convert.read_list(request, current(), self._page_tokens)
        books, end = await self._books.list(business_id, state, page.size, page.after)
        messages = zip(books, await self._messages(books), strict=True)
        page, end = page_within_bounds(
            list(messages), lambda it: it[1], end, lambda it: book_position(it[0])
        )
        return pb.ListCouponBooksResponse(
            coupon_books=page, next_page_token=self._page_tokens.token(request, end)
        )

    async def UpdateCouponBook(
        self, request: pb.UpdateCouponBookRequest, context: Any
    ) -> pb.UpdateCouponBookResponse:
        change = convert.read_update(request, current())
        book, replayed = await self._books.update(
            change.book_id, change.changes, change.etag_version, change.call, change.fingerprint
        )
        (message,) = await self._messages([book])
        return pb.UpdateCouponBookResponse(coupon_book=message, replayed=replayed)

    async def ActivateCouponBook(
        self, request: pb.ActivateCouponBookRequest, context: Any
    ) -> pb.ActivateCouponBookResponse:
        message, replayed = await self._transition(request, EventType.BOOK_ACTIVATED)
        return pb.ActivateCouponBookResponse(coupon_book=message, replayed=replayed)

    async def PauseCouponBook(
        self, request: pb.PauseCouponBookRequest, context: Any
    ) -> pb.PauseCouponBookResponse:
        message, replayed = await self._transition(request, EventType.BOOK_PAUSED)
        return pb.PauseCouponBookResponse(coupon_book=message, replayed=replayed)

    async def CloseCouponBook(
        self, request: pb.CloseCouponBookRequest, context: Any
    ) -> pb.CloseCouponBookResponse:
        message, replayed = await self._transition(request, EventType.BOOK_CLOSED)
        return pb.CloseCouponBookResponse(coupon_book=message, replayed=replayed)

    async def GetCouponBookStats(
        self, request: pb.GetCouponBookStatsRequest, context: Any
    ) -> pb.GetCouponBookStatsResponse:
        book_id = convert.read_book_id(request)
        business_id = current().business_id
        (book, stats), lag_ms = await self._near_books.ask(
            lambda books: books.stats(book_id, business_id)
        )
        tell_lag(context, lag_ms)
        return pb.GetCouponBookStatsResponse(stats=convert.stats_message(book, stats))

    async def _transition(
        self, request: convert.TransitionRequest, event: EventType
    ) -> tuple[pb.CouponBook, bool]:
        change = convert.read_transition(request, current())
        book, replayed = await self._books.transition(
            change.book_id, event, change.etag_version, change.call, change.fingerprint
        )
        (message,) = await self._messages([book])
        return message, replayed

    async def _messages(self, books: list[Book]) -> list[pb.CouponBook]:
        redemptions = await self._books.redemptions(books)
        now = self._now()
        return [
            convert.book_message(
                book, effective_book_state(book, redemptions.get(book.book_id), now)
            )
            for book in books
        ]
