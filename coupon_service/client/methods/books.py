"""Methods of CouponBookService."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf.field_mask_pb2 import FieldMask

from coupon_service.client.rpc import listing, unary
from coupon_service.client.values import new_request_id
from coupon_service.v1 import coupon_book_service_pb2 as pb


class CouponBookMethods:
    """Coupon books: campaigns of a business."""

    @unary(pb.CreateCouponBookResponse)
    @staticmethod
    def create_coupon_book(
        coupon_book: pb.CouponBook, *, request_id: str = ""
    ) -> pb.CreateCouponBookRequest:
        """Create a book in state DRAFT."""
        return pb.CreateCouponBookRequest(
            coupon_book=coupon_book, request_id=request_id or new_request_id()
        )

    @unary(pb.GetCouponBookResponse)
    @staticmethod
    def get_coupon_book(book_id: str) -> pb.GetCouponBookRequest:
        """A book."""
        return pb.GetCouponBookRequest(book_id=book_id)

    @listing(pb.ListCouponBooksResponse, lambda page: page.coupon_books)
    @staticmethod
    def list_coupon_books(
        *,
        business_id: str = "",
        state: pb.CouponBookState.ValueType = pb.COUPON_BOOK_STATE_UNSPECIFIED,
        page_size: int = 0,
    ) -> pb.ListCouponBooksRequest:
        """Books, newest first."""
        return pb.ListCouponBooksRequest(business_id=business_id, state=state, page_size=page_size)

    @unary(pb.UpdateCouponBookResponse)
    @staticmethod
    def update_coupon_book(
        coupon_book: pb.CouponBook, update_mask: Iterable[str], *, request_id: str = ""
    ) -> pb.UpdateCouponBookRequest:
        """Update the fields of a book that `update_mask` names. ConcurrentModification when its
        etag is set and is not the current one.
        """
        return pb.UpdateCouponBookRequest(
            coupon_book=coupon_book,
            update_mask=FieldMask(paths=update_mask),
            request_id=request_id or new_request_id(),
        )

    @unary(pb.ActivateCouponBookResponse)
    @staticmethod
    def activate_coupon_book(
        book_id: str, *, etag: str = "", request_id: str = ""
    ) -> pb.ActivateCouponBookRequest:
        """DRAFT or PAUSED → ACTIVE."""
        return pb.ActivateCouponBookRequest(
            book_id=book_id, etag=etag, request_id=request_id or new_request_id()
        )

    @unary(pb.PauseCouponBookResponse)
    @staticmethod
    def pause_coupon_book(
        book_id: str, *, etag: str = "", request_id: str = ""
    ) -> pb.PauseCouponBookRequest:
        """ACTIVE → PAUSED."""
        return pb.PauseCouponBookRequest(
            book_id=book_id, etag=etag, request_id=request_id or new_request_id()
        )

    @unary(pb.CloseCouponBookResponse)
    @staticmethod
    def close_coupon_book(
        book_id: str, *, etag: str = "", request_id: str = ""
    ) -> pb.CloseCouponBookRequest:
        """Any state → CLOSED, permanently."""
        return pb.CloseCouponBookRequest(
            book_id=book_id, etag=etag, request_id=request_id or new_request_id()
        )

    @unary(pb.GetCouponBookStatsResponse)
    @staticmethod
    def get_coupon_book_stats(book_id: str) -> pb.GetCouponBookStatsRequest:
        """The counts of codes by state and of redemptions."""
        return pb.GetCouponBookStatsRequest(book_id=book_id)
