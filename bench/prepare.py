"""Books and codes for the benchmark, made through the public API."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

import grpc

from coupon_service.v1.coupon_book_service_pb2 import (
    ASSIGNMENT_POLICY_BEARER,
    LOCK_POLICY_OFF,
    ActivateCouponBookRequest,
    BookLimits,
    CouponBook,
    CreateCouponBookRequest,
    Discount,
    PercentOff,
)
from coupon_service.v1.coupon_book_service_pb2_grpc import CouponBookServiceStub
from coupon_service.v1.coupon_code_service_pb2 import ImportChunk, ImportCodesRequest, ImportHeader
from coupon_service.v1.coupon_code_service_pb2_grpc import CouponCodeServiceStub

CHUNK_SIZE: Final = 10_000


def make_book(
    channel: grpc.Channel, name: str, codes: Sequence[str], *, uses: int = 0, **fields: Any
) -> str:
    """An active book with these codes; returns its id. `uses`: redemptions a code, 0 any number.

    10 % off in EUR; whoever has a code may use it, without locks, unless `fields` differ.
    """
    books = CouponBookServiceStub(channel)
    values: dict[str, Any] = {
        "business_id": "bench",
        "name": name,
        "currency_code": "EUR",
        "discount": Discount(percent_off=PercentOff(basis_points=1_000)),
        "limits": BookLimits(max_redemptions_per_code=uses),
        "assignment_policy": ASSIGNMENT_POLICY_BEARER,
        "lock_policy": LOCK_POLICY_OFF,
        **fields,
    }
    created = books.CreateCouponBook(
        CreateCouponBookRequest(coupon_book=CouponBook(**values), request_id=f"bench-{name}")
    )
    book_id = created.coupon_book.book_id
    if codes:
        import_codes(channel, book_id, f"bench-{name}", codes)
    books.ActivateCouponBook(ActivateCouponBookRequest(book_id=book_id, request_id=f"bench-{name}"))
    return book_id


def import_codes(
    channel: grpc.Channel, book_id: str, request_id: str, codes: Sequence[str]
) -> None:
    """Uploads the codes."""
    for answer in CouponCodeServiceStub(channel).ImportCodes(_messages(book_id, request_id, codes)):
        assert not answer.rejected_rows, answer


def _messages(book_id: str, request_id: str, codes: Sequence[str]) -> Iterator[ImportCodesRequest]:
    yield ImportCodesRequest(header=ImportHeader(book_id=book_id, request_id=request_id))
    for number, start in enumerate(range(0, len(codes), CHUNK_SIZE), start=1):
        chunk = ImportChunk(chunk_number=number, codes=codes[start : start + CHUNK_SIZE])
        yield ImportCodesRequest(chunk=chunk)
